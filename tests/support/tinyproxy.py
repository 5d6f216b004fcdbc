"""A real proxy, Debian's tinyproxy, as a process on loopback, and what it was asked for."""

import re
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.needs import needs
from tests.support.processes import eventually, free_port

_REQUEST = re.compile(r"Request \(file descriptor \d+\): (\S+) (\S+) HTTP/")


class TinyProxy:
    """A forward proxy with these further lines of configuration. A context manager; `stop` and `start` at will."""

    def __init__(self, directory: Path, lines: Sequence[str] = ()) -> None:
        self.port = free_port()
        self._directory = directory
        self._log = directory / "tinyproxy.log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.configure(lines)

    def configure(self, lines: Sequence[str]) -> None:
        """Set the further lines; they count from the next start on."""
        own = [f"Port {self.port}", "Listen 127.0.0.1", "Allow 127.0.0.1", "Timeout 600", "MaxClients 100"]
        own += [f'LogFile "{self._log}"', "LogLevel Info"]
        (self._directory / "tinyproxy.conf").write_text("".join(f"{line}\n" for line in (*own, *lines)))

    def url(self, user: str = "") -> str:
        """Its URL, with `user:password` when given."""
        return f"http://{user}{'@' if user else ''}127.0.0.1:{self.port}"

    def asked(self) -> list[tuple[str, str]]:
        """Method and target of every request so far."""
        return _REQUEST.findall(self._log.read_text())

    def start(self) -> Self:
        """Start it and wait until it listens."""
        program = needs("tinyproxy", "apt-get install tinyproxy-bin")
        self._process = subprocess.Popen(
            [program, "-d", "-c", str(self._directory / "tinyproxy.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._listens, what="tinyproxy's start")
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False

    def stop(self) -> None:
        """End it and all its connections at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
