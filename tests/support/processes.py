"""A mirror as a real process on loopback, ended by its own handle."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

IMAGE = "/api/v2/mlops/portablePredictionServerImage/"
METADATA = IMAGE + "metadata/"
START_SECONDS = 30.0
HELD = 300
SETTLED_SECONDS = 0.15
"""Seconds without a new line after which its log has all; a line waits for others for 0.1 s at most."""


NO_AUTHORITIES = {"SSL_CERT_FILE": os.devnull}
"""Keeps a process from reading all of the system's certificate authorities, which takes half of its start.

It still reads the certificates that it is told to trust, and OpenSSL still looks in SSL_CERT_DIR.
"""

_holders: deque[socket.socket] = deque()


def free_port() -> int:
    """A port of loopback where nobody listens until a process is told to.

    A socket stays bound to it that never listens. So the kernel gives the port to nobody else, neither to listen on nor
    to connect from, and still lets a process listen there that names it, as every server does (SO_REUSEADDR). It is
    given back when some hundred others have been asked for, which no test does.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _holders.append(holder)
    if len(_holders) > HELD:
        _holders.popleft().close()
    return int(holder.getsockname()[1])


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    return [free_port() for _ in range(count)]


def eventually(condition: Callable[[], object], seconds: float = 20.0, what: str = "it") -> None:
    """Wait until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


class Process(Protocol):
    """What a mirror runs in: as subprocess.Popen has it."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit status, minus a signal's number if one ended it; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Returns the exit status; raises subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it still runs."""

    def kill(self) -> None:
        """Send it SIGKILL, if it still runs."""


class MirrorProcess:
    """`pps-mirror serve` with a configuration of its own below `directory`. Use as a context manager.

    It is the real command, which takes a second to import what it needs; `forked.ForkedMirror` does without that.
    """

    def __init__(
        self,
        directory: Path,
        upstream_url: str,
        sections: Mapping[str, Mapping[str, Any]] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port, self.admin_port = free_ports(2)
        self.store = directory / "store"
        self.log_file = directory / "mirror.common.log"
        self.config_file = directory / "config.toml"
        self.scheme = "https" if sections and "tls_cert" in sections.get("server", {}) else "http"
        tables: dict[str, dict[str, Any]] = {
            "server": {"host": "127.0.0.1", "port": self.port, "drain": "5s"},
            "admin": {"port": self.admin_port},
            "upstream": {"url": upstream_url},
            "auth": {},
            "store": {"path": str(self.store), "min_free": "1MiB"},
            # The images of most tests are random bytes: without an archive there is nothing to pull, which is degraded.
            "registry": {"enabled": bool(sections and "registry" in sections)},
            "log": {"level": "debug", "format": "json"},
        }
        for name, values in (sections or {}).items():
            tables.setdefault(name, {}).update(values)
        directory.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
                for name, values in tables.items()
            )
        )
        self.environ = (
            {
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("PPS_MIRROR", "DATAROBOT")) and not name.lower().endswith("_proxy")
            }
            | NO_AUTHORITIES
            | dict(environ or {})
        )
        self.seen_file = directory / "seen"
        """What others on the machine can see of it: its command line, and what the admin listener says to anybody."""
        self.process: Process | None = None
        self.through: Sequence[str] = ()
        """What is put before its own command: one that ends in becoming it."""
        self.passed: Sequence[int] = ()
        """Descriptors that the command `through` inherits."""

    @property
    def url(self) -> str:
        """Where clients are pointed at, without a path."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def image_url(self) -> str:
        return self.url + IMAGE

    @property
    def metadata_url(self) -> str:
        return self.url + METADATA

    def doors(self, image_hash: str) -> list[str]:
        """Every way to what is stored."""
        images = f"{self.url}/mirror/v1/images/"
        image = f"{images}{image_hash}/"
        return [self.image_url, self.metadata_url, images, image, f"{image}metadata/"]

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def start(self, *, wait: bool = True) -> Self:
        """Start it and wait until it says that it is ready, unless told not to."""
        assert not self.alive(), "it runs already, and would not be ended"
        self.process = self._launch()
        return self.wait_ready() if wait else self

    def _launch(self) -> Process:
        """Start the process, by the command `through` if there is one."""
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [*self.through, sys.executable, "-m", "mirror.cli.main", "serve", "-c", str(self.config_file)],
                stdout=log,
                stderr=log,
                env=self.environ,
                pass_fds=self.passed,
            )

    def wait_ready(self) -> Self:
        """Wait until it says that it is ready."""
        self._wait_ready_or_dead()
        assert self.alive(), self.log()
        return self

    def _wait_ready_or_dead(self) -> None:
        eventually(lambda: not self.alive() or self._is_ready(), START_SECONDS, "the mirror's start")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.admin_url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            with error:
                return b"the mirror is starting" not in error.read()
        except OSError:
            return False

    @property
    def settled(self) -> Self:
        """Itself, once its log has what happened before: a thread of its own writes that, a little later."""
        size = -1
        while self.alive() and size != (size := self.log_file.stat().st_size):
            time.sleep(SETTLED_SECONDS)
        return self

    def log(self) -> str:
        """Everything it has said so far; `settled` says how far that is."""
        return self.log_file.read_text()

    def events(self, *actions: str) -> list[dict[str, Any]]:
        """What it has logged so far that has a name for machines, or only what has one of these; it logs JSON."""
        whole = [line for line in self.log().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
        named = [line for line in map(json.loads, whole) if "event.action" in line]
        return [line for line in named if not actions or line["event.action"] in actions]

    def actions(self) -> list[str]:
        """What has happened so far, by the names that its log has for machines."""
        return [event["event.action"] for event in self.events()]

    def hang_up(self, processes: int = 1) -> str:
        """Send SIGHUP; what its log says of that once it is over in so many processes."""
        before = len(self.events())
        self.send_signal(signal.SIGHUP)

        def over() -> bool:
            new = [event["event.action"] for event in self.events()[before:]]
            return "reload.failed" in new or new.count("mirror.reloaded") == processes

        eventually(over, what="the reload")
        said = [event for event in self.events()[before:] if event["message"].startswith("SIGHUP: ")]
        return "".join(f"{event['log.level'].upper()} {event['message']}\n" for event in said)

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def wait_dead(self, seconds: float = 30.0) -> int:
        """Wait until it has ended by itself; its exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def send_signal(self, sig: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(sig)

    def freeze(self) -> None:
        """Stop it where it stands; it notices nothing."""
        self.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 20.0) -> int:
        """End it with SIGTERM; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self._write_down_what_is_seen(self.process.pid)
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _write_down_what_is_seen(self, pid: int) -> None:
        with self.seen_file.open("ab") as seen:
            children = []
            with contextlib.suppress(FileNotFoundError):  # it may just have ended
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for process in (str(pid), *children):
                with contextlib.suppress(FileNotFoundError):
                    seen.write(Path(f"/proc/{process}/cmdline").read_bytes() + b"\n")
            for path in ("healthz", "readyz", "nothing"):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=1)
                    with contextlib.closing(connection):
                        connection.request("GET", f"/{path}")
                        answer = connection.getresponse()
                        seen.write(bytes(answer.headers) + answer.read() + b"\n")

    def resident(self) -> int:
        """Its resident memory now, in bytes."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            if self.process is not None:
                self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.alive():
            self.thaw()
            self.stop()
