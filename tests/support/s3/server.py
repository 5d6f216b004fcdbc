"""What the S3 servers of the tests have in common: processes on loopback, all their state below one directory."""

import contextlib
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from botocore.exceptions import BotoCoreError, ClientError

from tests.support.certificates import certificate
from tests.support.processes import eventually, free_ports
from tests.support.s3.client import S3Client

START_SECONDS = 120.0


class S3Server(ABC):
    """A server with one identity that may do everything. Use as a context manager; `start` again goes on with its data.

    Subclasses launch their processes; `front` is the name of the one that answers S3.
    """

    name = "an S3 server"
    front = "front"

    def __init__(self, directory: Path, parts: Sequence[str]) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.access_key, self.secret_key = "pps-writer", "a-secret-key-of-a-writer"
        self.ca_file, self.key_file = certificate(directory / "tls")
        names = ("s3", "https", *parts)
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def endpoint_url(self) -> str:
        """Where it answers plain HTTP."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def https_endpoint_url(self) -> str:
        """Where it answers HTTPS, with the certificate in `ca_file`."""
        return f"https://127.0.0.1:{self.ports['https']}"

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which a process may do everything here."""
        return credentials(self.access_key, self.secret_key)

    @property
    def secrets(self) -> Sequence[str]:
        """The secret keys of everybody it knows."""
        return (self.secret_key,)

    def client(self) -> S3Client:
        """Somebody who may do everything here."""
        return S3Client(self.endpoint_url, self.access_key, self.secret_key)

    @abstractmethod
    def launch(self) -> None:
        """Start the processes that do not run."""

    def ready(self) -> bool:
        """Whether objects can be written and read."""
        self.client().raw.list_buckets()
        return True

    def start(self) -> Self:
        """Start it, on the data that is there, and wait until it takes objects."""
        self.launch()
        eventually(self._is_ready, START_SECONDS, f"{self.name}'s start")
        return self

    def stop(self) -> None:
        """End it; the data stays."""
        for process in reversed(self._processes.values()):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        self._processes.clear()

    def kill(self, process: str = "") -> None:
        """End one of its processes as a power cut would: the front, or another one."""
        killed = self._processes.pop(process or self.front)
        killed.kill()
        killed.wait()

    def freeze(self) -> None:
        """Let it hang: connections are accepted by the kernel, and nobody answers."""
        self._processes[self.front].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._processes[self.front].send_signal(signal.SIGCONT)

    def spawn(self, name: str, *command: object, environ: Mapping[str, str] | None = None) -> None:
        """Start a process of the server's, unless it runs."""
        if name in self._processes:
            return
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=log, cwd=self.directory, env=environ
            )

    def run(self, *command: object) -> None:
        """Run a command to its end; it must succeed."""
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=self.directory, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-1000:]}"

    def _is_ready(self) -> bool:
        for name, process in self._processes.items():
            assert process.poll() is None, f"{name} of {self.name} ended: {self._log(name).read_text()[-2000:]}"
        with contextlib.suppress(OSError, BotoCoreError, ClientError, KeyError, ValueError):
            return self.ready()
        return False

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.out"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.push(self)  # whatever runs of a server that does not start, or lacks a program, is ended
            self.start()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes.values():  # nobody wants their data any more
            process.kill()
            process.wait()


def credentials(access_key: str, secret_key: str) -> dict[str, str]:
    """The variables by which AWS's libraries take them."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
