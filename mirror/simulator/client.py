"""Starts a simulator and controls it, synchronously, for tests and the demo.

with Simulator.start([ImageSpec("old"), ImageSpec("new")]) as simulator:
    simulator.fault(Fault("store", cut_after=1000, reset=True))
    ...
    assert simulator.counters().image_requests == 1
"""

import dataclasses
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import IO, Any, Protocol, Self

from mirror.simulator.faults import Fault
from mirror.simulator.images import Image, ImageSpec, metadata_body
from mirror.simulator.record import Counters, LoggedRequest, fingerprint
from mirror.simulator.setup import TOKEN, Setup

__all__ = ["TOKEN", "Counters", "Fault", "ImageSpec", "LoggedRequest", "Simulator", "SimulatorFailed", "fingerprint"]

_CALL_SECONDS = 30.0
_STOP_SECONDS = 10.0


class SimulatorFailed(Exception):
    """The simulator did not start, or refused a control call; the text has its reason and its stderr."""


class Process(Protocol):
    """What it runs in: as subprocess.Popen has it."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def launch(errors: IO[bytes]) -> Process:
    """Start the command; what it says goes to the file `errors`, what it is told comes from a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "mirror.simulator", "--state", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
    )


class Simulator:
    """A running simulator; a context manager that ends it. It also ends when the process that started it does."""

    launch: Callable[[IO[bytes]], Process] = staticmethod(launch)
    """How its process is started."""

    def __init__(self, setup: Setup) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        self._said: str | None = None
        self._process = self.launch(self._errors)
        try:
            ready = self._exchange_first_lines(setup)
        except BaseException:
            self.stop()
            raise
        self.setup = setup
        self.api_url: str = ready["api_url"]
        self.store_url: str = ready["store_url"]
        self._images = {spec["name"]: Image.load(ImageSpec(**spec)) for spec in ready["images"]}
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if setup.tls_cert:
            handlers.append(urllib.request.HTTPSHandler(context=_trusting(setup.tls_cert)))
        self._opener = urllib.request.build_opener(*handlers)

    @classmethod
    def start(
        cls,
        images: Sequence[ImageSpec] = (ImageSpec("first"),),
        *,
        current: str = "",
        tokens: Sequence[str] = (TOKEN,),
        forbidden: Sequence[str] = (),
        host: str = "127.0.0.1",
        store_name: str = "",
        api_port: int = 0,
        store_port: int = 0,
        rate: float | None = None,
        connection_rate: float | None = None,
        url_lifetime: float = 900.0,
        tls_cert: str = "",
        tls_key: str = "",
    ) -> Self:
        """Start one and wait until it listens; `setup.Setup` says what the options mean.

        Raises:
            SimulatorFailed: it did not start.
        """
        return cls(
            Setup(
                images=tuple(images),
                current=current,
                tokens=tuple(tokens),
                forbidden=tuple(forbidden),
                host=host,
                store_name=store_name,
                api_port=api_port,
                store_port=store_port,
                rate=rate,
                connection_rate=connection_rate,
                url_lifetime=url_lifetime,
                tls_cert=tls_cert,
                tls_key=tls_key,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def token(self) -> str:
        """A token that the simulator accepts at start."""
        return self.setup.tokens[0]

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def fault(self, *faults: Fault) -> None:
        """Put faults in force, behind those already there."""
        for fault in faults:
            self._call("POST", "faults", dataclasses.asdict(fault))

    def clear_faults(self) -> None:
        """Forget all faults and let every answer go on that waits."""
        self._call("DELETE", "faults")
        self.release()

    def release(self) -> None:
        """Let every answer go on that waits now, on account of `hold` or `hang_after`."""
        self._call("POST", "release")

    def wait_held(self, count: int = 1, timeout: float = 10.0) -> None:
        """Wait until that many answers wait for `release`.

        Raises:
            TimeoutError: they do not within `timeout` seconds.
        """
        self.wait_until(lambda: self.counters().held >= count, timeout)

    def wait_until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Wait until the condition holds; it is tried every few milliseconds.

        Raises:
            TimeoutError: it does not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout} s in vain; requests so far: {self.log()}")
            time.sleep(0.005)

    def roll_over(self, name: str) -> None:
        """Make another image the current one; `none`: there is no image any more."""
        self._call("POST", "current", name)

    def set_rate(self, rate: float | None, *, connection_rate: float | None = None) -> None:
        """Limit all connections together and each of them, in bytes per second; running ones change speed as well."""
        self._call("PUT", "rate", {"rate": rate, "connection_rate": connection_rate})

    def set_tokens(self, tokens: Iterable[str], *, forbidden: Iterable[str] = ()) -> None:
        """Accept these tokens only, answer 403 to the forbidden and 401 to all others."""
        self._call("PUT", "tokens", {"tokens": list(tokens), "forbidden": list(forbidden)})

    def log(self, place: str | None = None) -> list[LoggedRequest]:
        """The requests since the start or `reset_log`, oldest first: all, or those to one place."""
        requests = [LoggedRequest(**each) for each in self._call("GET", "log")]
        return [each for each in requests if place is None or each.place == place]

    def reset_log(self) -> None:
        """Forget the requests and set the counters to zero."""
        self._call("DELETE", "log")

    def counters(self) -> Counters:
        """The sums of the log."""
        return Counters(**self._call("GET", "counters"))

    def bytes_sent(self) -> int:
        """Image bytes handed to the kernel since the start or `reset_log`."""
        return self.counters().bytes_sent

    def metadata(self, name: str) -> dict[str, Any]:
        """The metadata fields of an image, without any fault."""
        return self._images[name].metadata

    def metadata_body(self, name: str) -> bytes:
        """The metadata answer for an image, byte for byte."""
        return metadata_body(self.metadata(name))

    def image_sha256(self, name: str) -> str:
        """The hash of the right bytes, lower-case hex."""
        return self._images[name].spec.sha256

    def image_size(self, name: str) -> int:
        """The number of the right bytes."""
        return self._images[name].size

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The right bytes of an image, `start` inclusive, `stop` exclusive."""
        image = self._images[name]
        return image.read(start, image.size if stop is None else stop)

    def stop(self) -> int:
        """End the process, if it still runs, and return its exit status."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._said is None:
            self._said = self.errors()
            self._errors.close()
        return self._process.wait()

    def errors(self) -> str:
        """Return what it wrote to stderr so far: empty, unless something is wrong with the simulator itself."""
        if self._said is not None:
            return self._said
        # The child shares our file offset: seeking would move the place where it writes.
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode(errors="replace")

    def _exchange_first_lines(self, setup: Setup) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise SimulatorFailed("no pipes")
        self._process.stdin.write(json.dumps(dataclasses.asdict(setup)).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(_STOP_SECONDS)
            raise SimulatorFailed(f"it did not start: {self.errors().strip()}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def _call(self, method: str, what: str, data: object = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the URL is our own
            f"{self.api_url}/_sim/{what}",
            data=None if data is None else json.dumps(data).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        try:
            with self._opener.open(request, timeout=_CALL_SECONDS) as answer:
                return json.load(answer)["result"]
        except urllib.error.HTTPError as error:
            with error:
                raise SimulatorFailed(f"{method} {what}: {error.read().decode(errors='replace')}") from None
        except OSError as error:
            raise SimulatorFailed(f"{method} {what}: {error}; its stderr: {self.errors()}") from error


def _trusting(certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a leaf of somebody's private CA is enough here
    return context
