"""Many clients that read one image slowly and at different paces, so that all of them are there at once."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.clients import AUTHORIZATION, ClientError

_PIECE = 1 << 16
_RECEIVE_BUFFER = 1 << 17  # keeps the bytes on the server's side, whose memory is the question
_SLOWEST, _FASTEST = 128 << 10, 1 << 20  # bytes a second


@dataclass(frozen=True, slots=True)
class Crowd:
    """How the readers fared: how many got bytes of the body, and how many were still reading at the end."""

    begun: int
    present: int


def read_slowly(url: str, *, starts: Sequence[int], seconds: float, ca: Path | None = None) -> Crowd:
    """Let one reader for each offset of `starts` read the image at `url` from there, for `seconds`."""
    tls = ssl.create_default_context(cafile=ca) if ca else None
    return asyncio.run(_crowd(url, starts, seconds, tls))


async def _crowd(url: str, starts: Sequence[int], seconds: float, tls: ssl.SSLContext | None) -> Crowd:
    step = (_FASTEST - _SLOWEST) / len(starts)
    readers = [_Reader(url, start, _SLOWEST + step * number, tls) for number, start in enumerate(starts)]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    done, pending = await asyncio.wait(tasks, timeout=seconds)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
    return Crowd(begun=sum(reader.received > 0 for reader in readers), present=len(pending))


class _Reader:
    """One client: asks for the image from `start` on and takes `rate` bytes of it a second."""

    def __init__(self, url: str, start: int, rate: float, tls: ssl.SSLContext | None) -> None:
        self._url = urlsplit(url)
        self._start = start
        self._rate = rate
        self._tls = tls
        self.received = 0

    async def run(self) -> None:
        """Read until the end, or until cancelled; raise ClientError when the answer is an error."""
        loop = asyncio.get_running_loop()
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        await loop.sock_connect(connection, (self._url.hostname, self._url.port))
        host = self._url.hostname if self._tls else None
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=self._tls, server_hostname=host, limit=_PIECE
        )
        try:
            writer.write(self._request())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 2"):
                raise ClientError(f"{self._url.geturl()}: {head[:200]!r}")
            begin = loop.time()
            while piece := await reader.read(_PIECE):
                self.received += len(piece)
                await asyncio.sleep(begin + self.received / self._rate - loop.time())
        finally:
            writer.transport.abort()

    def _request(self) -> bytes:
        headers = {"Host": self._url.netloc, **AUTHORIZATION}
        if self._start:
            headers["Range"] = f"bytes={self._start}-"
        lines = [f"GET {self._url.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode()
