"""A proxy before an S3 server that passes everything on unchanged, Host included, until it is told to misbehave."""

import contextlib
import http.client
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.support.s3.client import S3Client
from tests.support.s3.server import S3Server

PIECE = 64 << 10
CONDITIONS = ("If-None-Match", "If-Match")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What becomes of the next `times` requests (None: all) whose method and path with query match these expressions.

    `conditional`: only of those that carry If-None-Match or If-Match. `header`: only of those that carry it.
    """

    method: str = ""
    path: str = ""
    times: int | None = None
    conditional: bool = False
    header: str = ""
    status: int | None = None
    """Answer this, with the S3 error `code`, instead of asking the server."""
    code: str = ""
    cut_after: int | None = None
    """Reset the connection after so many bytes of the answer's body."""
    stall: bool = False
    """Answer nothing until `Front.clear`."""
    close: bool = False
    """Close the connection instead."""
    unconditional: bool = False
    """Write what is to be written whatever its condition says, as servers do that do not know conditions."""

    def matches(self, request: "_Handler") -> bool:
        """Whether it is about that request."""
        return (
            re.fullmatch(self.method or ".*", request.command) is not None
            and re.search(self.path, unquote(request.path)) is not None
            and (not self.conditional or any(request.headers.get(name) for name in CONDITIONS))
            and (not self.header or self.header in request.headers)
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came and what became of it: `sent` are bytes of the answer's body."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    session: str | None
    status: int
    sent: int


class Front:
    """The proxy before `server`, listening. Use as a context manager."""

    def __init__(self, server: S3Server) -> None:
        self._backend = urlsplit(server.endpoint_url)
        self._client: S3Client = server.client()
        self._troubles: list[list[Any]] = []
        self._turn = threading.Lock()
        self._came: list[tuple[str, str]] = []
        self._asked: list[Asked] = []
        self._released = threading.Event()
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._listener: _Listener | None = None
        self.rate: float | None = None
        """Bytes per second of each answer's body."""

    @property
    def endpoint_url(self) -> str:
        """Where it answers, and nothing answers while it refuses."""
        return f"http://127.0.0.1:{self._port}"

    def trouble(self, *troubles: Trouble) -> None:
        """From now on these, the first that matches; before those that were there."""
        with self._turn:
            self._troubles[:0] = [[trouble, trouble.times] for trouble in troubles]

    def clear(self) -> None:
        """Be well again, for those who wait as well."""
        with self._turn:
            self._troubles.clear()
            self._released.set()
            self._released = threading.Event()
        self.rate = None

    def asked(self, method: str = "", path: str = "") -> list[Asked]:
        """The requests so far that were answered, as far as that went, and match."""
        with self._turn:
            return [
                asked
                for asked in self._asked
                if re.fullmatch(method or ".*", asked.method) and re.search(path, unquote(asked.path))
            ]

    def came(self, method: str = "", path: str = "") -> int:
        """How many requests so far match, answered or not."""
        with self._turn:
            return sum(
                re.fullmatch(method or ".*", asked) is not None and re.search(path, unquote(about)) is not None
                for asked, about in self._came
            )

    def secrets(self) -> set[str]:
        """The signatures and session tokens of all requests that were answered."""
        said = "\n".join(f"{asked.authorization} {unquote(asked.path)}" for asked in self.asked())
        return set(re.findall(r"Signature=(\w{64})", said)) | {
            asked.session for asked in self.asked() if asked.session is not None
        }

    def forget(self) -> None:
        """Forget what was asked so far."""
        with self._turn:
            self._asked.clear()

    def refuse(self) -> None:
        """Refuse connections, and reset those there are."""
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None
        for connection in list(self._connections):
            _reset(connection)

    def listen(self) -> None:
        """Take connections, again."""
        self._listener = _Listener(self._port, self)
        self._port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()
        self.refuse()

    # One request, in a thread of its own

    def answer(self, request: "_Handler") -> None:
        """Do what is to be done with a request."""
        trouble, released = self._take(request)
        body = request.rfile.read(int(request.headers.get("Content-Length", "0")))
        if trouble.stall:
            released.wait()
            request.close_connection = True
            return
        if trouble.close:
            self._note(request, 0, 0)
            request.close_connection = True
        elif trouble.status is not None:
            self._say(request, trouble.status, _error(trouble.code))
        elif trouble.unconditional:
            bucket, _, key = unquote(urlsplit(request.path).path).lstrip("/").partition("/")
            etag = self._client.raw.put_object(Bucket=bucket, Key=key, Body=body)["ETag"]
            self._say(request, 200, b"", ETag=etag)
        else:
            self._pass_on(request, body, trouble.cut_after)

    def enter(self, connection: socket.socket) -> None:
        """Note a connection that is open."""
        self._connections.add(connection)

    def leave(self, connection: socket.socket) -> None:
        """And that it is not."""
        self._connections.discard(connection)

    def _take(self, request: "_Handler") -> tuple[Trouble, threading.Event]:
        with self._turn:
            self._came.append((request.command, request.path))
            for entry in self._troubles:
                trouble, times = entry
                if times != 0 and trouble.matches(request):
                    entry[1] = None if times is None else times - 1
                    return trouble, self._released
            return Trouble(), self._released

    def _say(self, request: "_Handler", status: int, body: bytes, **headers: str) -> None:
        self._note(request, status, len(body))
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/xml", **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _pass_on(self, request: "_Handler", body: bytes, cut_after: int | None) -> None:
        backend = http.client.HTTPConnection(self._backend.hostname or "", self._backend.port, timeout=60)
        with contextlib.closing(backend):
            backend.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    backend.putheader(name, value)
            backend.endheaders(body or None)
            answer = backend.getresponse()
            request.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in {"connection", "transfer-encoding"}:
                    request.send_header(name, value)
            if answer.headers.get("Transfer-Encoding"):
                whole = answer.read()
                request.send_header("Content-Length", str(len(whole)))
                pieces = iter([whole])
            else:
                pieces = iter(lambda: answer.read(PIECE), b"")
            request.end_headers()
            self._carry(request, answer.status, pieces, cut_after)

    def _carry(self, request: "_Handler", status: int, pieces: Iterator[bytes], cut_after: int | None) -> None:
        sent, began = 0, time.monotonic()
        try:
            for piece in pieces:
                given = piece if cut_after is None else piece[: cut_after - sent]
                request.wfile.write(given)
                sent += len(given)
                if cut_after is not None and sent >= cut_after:
                    time.sleep(0.1)  # a reset takes away what has not been read yet
                    _reset(request.connection)
                    request.close_connection = True
                    return
                if (rate := self.rate) is not None:
                    time.sleep(max(0.0, began + sent / rate - time.monotonic()))
        finally:
            self._note(request, status, sent)

    def _note(self, request: "_Handler", status: int, sent: int) -> None:
        wanted, authorization, session = map(request.headers.get, ("Range", "Authorization", "X-Amz-Security-Token"))
        asked = Asked(request.command, request.path, wanted, authorization, session, status, sent)
        with self._turn:
            self._asked.append(asked)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, front: Front) -> None:
        self.front = front
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever left has left."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._do
        raise AttributeError(name)

    def setup(self) -> None:
        """A connection begins."""
        super().setup()
        assert isinstance(self.server, _Listener)
        self.front = self.server.front
        self.front.enter(self.connection)

    def finish(self) -> None:
        """It ends."""
        self.front.leave(self.connection)
        super().finish()

    def _do(self) -> None:
        try:
            self.front.answer(self)
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _error(code: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # for the thread that reads from it
        os.close(connection.detach())  # close() would wait for the files made of it
