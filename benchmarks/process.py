"""A server under measurement: how it starts, becomes ready, is made cold, and ends.

A server owns one directory and one process. It never outlives its `with` block.
"""

import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

_SECONDS_TO_START = 30.0
_SECONDS_TO_STOP = 15.0
_PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])

_given_ports: set[int] = set()


class ServerError(Exception):
    """A server did not start, or ended by itself; the message holds the end of its log."""


def find_program(name: str) -> str | None:
    """Return the path of a program, looking where Debian keeps daemons too, or None."""
    return shutil.which(name, path=_PROGRAM_PATH)


def free_port() -> int:
    """Return a loopback port that nobody listens on, a different one at each call."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given_ports:
            _given_ports.add(port)
            return port


class Server(ABC):
    """One process that answers on loopback, with its own directory; a context manager."""

    name: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> list[str]:
        """Write what the process needs into the empty `directory`; return its command line."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Tell, without waiting long, whether the process answers."""

    @property
    def pid(self) -> int:
        """The process that was started; its workers are its descendants."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start with an empty directory and return when the server answers; raise ServerError otherwise."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        command = self.prepare()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _SECONDS_TO_START
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process, by force if it does not go; calling it twice is fine."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def cool(self) -> None:
        """Forget everything: stop, empty the directory, start."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def accepts_connections(port: int) -> bool:
    """Tell whether somebody listens on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
