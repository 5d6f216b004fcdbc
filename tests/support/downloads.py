"""A download as a client sees it: status, headers, bytes as they come, and how it ended."""

import hashlib
import http.client
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from mirror.simulator.client import TOKEN

AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
HELD = 64 << 10
"""The last bytes of an image, which nobody has before it is verified and stored."""

_READ = 1 << 20
"""Bytes that are read at a time at most: `http.client` takes memory for all that it is asked for, each time anew."""


class Download:
    """A GET (or another method) whose body is read as the test wishes. A context manager that closes."""

    def __init__(
        self, url: str, method: str = "GET", headers: dict[str, str] | None = None, timeout: float = 30
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        self.began = time.monotonic()
        self._connection.request(method, parts.path, headers=AUTHORIZED if headers is None else headers)
        try:
            self.answer = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise
        self.answered_after = time.monotonic() - self.began
        self._body = bytearray()
        self.ended: str | None = None
        self.first_byte_after: float | None = None

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def body(self) -> bytes:
        """What has been read so far."""
        return bytes(self._body)

    def header(self, name: str) -> str:
        """The header's value; empty when there is none."""
        return self.answer.headers.get(name, "")

    def read(self, count: int) -> bytes:
        """Read exactly `count` further bytes, or as many as come before the end."""
        before = len(self._body)
        while len(self._body) < before + count and self.ended is None:
            self._read_some(before + count - len(self._body))
        return bytes(memoryview(self._body)[before:])

    def read_all(self) -> Self:
        """Read to the end: `ended` is "complete", "reset" or "cut" (a plain close too early)."""
        while self.ended is None:
            self._read_some(_READ)
        return self

    def _read_some(self, most: int) -> None:
        try:
            piece = self.answer.read1(min(most, _READ))
        except ConnectionResetError:
            self.ended = "reset"
            return
        if piece:
            if self.first_byte_after is None:
                self.first_byte_after = time.monotonic() - self.began
            self._body += piece
        if not piece or self.answer.length == 0:
            self.ended = "complete" if self.answer.length == 0 else "cut"

    def abandon(self) -> None:
        """Leave as a client does that was killed: with a reset."""
        if self._connection.sock is not None:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.answer.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Outcome:
    """What became of one of many downloads."""

    status: int
    cache_status: str
    ended: str
    sha256: str
    length: int
    first_byte_after: float | None = field(default=None)


def fetch(url: str, headers: dict[str, str] | None = None, timeout: float = 60) -> Outcome:
    """Download all of it."""
    with Download(url, headers=headers, timeout=timeout) as download:
        download.read_all()
        return Outcome(
            download.status,
            download.header("Cache-Status"),
            download.ended or "",
            hashlib.sha256(body := download.body).hexdigest(),
            len(body),
            download.first_byte_after,
        )


def at_once(count: int, what: Callable[[], Outcome]) -> list[Outcome]:
    """Run it `count` times at the same moment, each in a thread."""
    barrier = threading.Barrier(count)

    def one() -> Outcome:
        barrier.wait()
        return what()

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(count)]]


BYPASS = "pps-mirror; fwd=bypass"


def digest_of(command: list[str]) -> str:
    """The SHA-256 of what a command writes."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        return hashlib.file_digest(process.stdout, "sha256").hexdigest()  # type: ignore[arg-type] # a pipe will do
