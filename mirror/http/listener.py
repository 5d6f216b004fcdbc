"""A listener: connections, their limits and timeouts, request ids, and the one place where errors become answers."""

import asyncio
import logging
import re
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web

from mirror.common.hosts import unmapped
from mirror.common.log import event
from mirror.http import half_closed
from mirror.http import head_limits as heads
from mirror.http.accept import Acceptor
from mirror.http.bind import listening, unusable
from mirror.http.errors import error_response, message_response
from mirror.http.send import reset
from mirror.model.errors import BadRequest, HeadersTooLarge, MirrorError, Unavailable

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
LogAccess = Callable[[web.BaseRequest, web.StreamResponse | None, float], None]

RESET_SECONDS = 5.0
"""How long, at most, requests may take to end after their connections were reset."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many connections are served at most; `beyond` more get 503, as `said`, and others are just closed."""

    most: int
    beyond: int
    said: str


class Listener:
    """Serves `handler` on one address.

    `header_timeout` in seconds bounds the time a connection may be open without a whole request, the first one and
    between two, and before them its TLS handshake, and the time for which a client may leave a small answer unread;
    `crowd` says how many clients there may be; `drain` in seconds is what requests under way have to end when it stops.
    Must be made inside the running loop.
    """

    def __init__(
        self,
        handler: Handler,
        host: str,
        port: int,
        *,
        header_timeout: float,
        crowd: Crowd,
        drain: float,
        log_access: LogAccess | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._server = _Server(
            _answering(handler, log_access or (lambda *_: None)),
            handler_cancellation=True,
            lingering_time=1.0,
            max_line_size=heads.LINE,
            max_field_size=heads.FIELD,
            max_headers=heads.FIELDS,
            auto_decompress=False,  # no request has a body that is of any use here: it is skipped
            crowd=crowd,
            header_timeout=header_timeout,
            access_log=None,
        )
        self._host, self._port, self._tls = host, port, tls
        self._header_timeout, self._drain = header_timeout, drain
        self._acceptor: Acceptor | None = None

    def take_up(self, *, header_timeout: float, crowd: Crowd, drain: float) -> None:
        """From now on these are its bounds, for connections that are made now; for TLS handshakes after a restart."""
        self._drain = drain
        self._server.take_up(crowd=crowd, header_timeout=header_timeout)

    @property
    def port(self) -> int:
        """The port it listens on, also when port 0 was asked for."""
        return self._port

    async def start(self, passed: Sequence[socket.socket] = ()) -> None:
        """Serve the listening sockets that were `passed`, else our own.

        Raises ConfigError when the address cannot be had, or AddressUnavailable when it may be later.
        """
        try:
            sockets = passed or listening(self._host, self._port)
        except OSError as error:
            raise unusable(self._host, self._port, error) from None
        self._port = int(sockets[0].getsockname()[1])
        self._acceptor = Acceptor(sockets, self._server, self._tls, self._header_timeout)

    async def stop(self) -> None:
        """Accept nothing new, close what is idle, let requests under way end for `drain` seconds, then reset them."""
        if self._acceptor is not None:
            await self._acceptor.close()
        self._server.pre_shutdown()
        await self._server.shutdown(self._drain)


def _answering(handler: Handler, log_access: LogAccess) -> Handler:
    """Give each request its id, make every way it can end an answer, and log it, also when the client left."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        given = request.headers.get("X-Request-ID", "")
        request["id"] = given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)
        response: web.StreamResponse | None = None
        connection = request.protocol
        assert isinstance(connection, _Connection)  # noqa: S101 - the server makes no others
        try:
            with connection.server.answering(connection):
                if connection.one_too_many:
                    raise Unavailable(connection.server.crowd.said)
                if request.version not in {HttpVersion10, HttpVersion11}:
                    raise BadRequest("only HTTP/1.1 and HTTP/1.0 are understood here")
                if heads.size(request.raw_headers) > heads.HEAD:
                    raise HeadersTooLarge(heads.ALL_TOO_LONG)
                response = await handler(request)
        except MirrorError as error:
            response = error_response(error)
        except Exception:
            log.exception("request %s failed", request["id"], extra=event("mirror.mistake", request=request["id"]))
            response = message_response(500, f"the mirror made a mistake; its log says more under {request['id']}")
        finally:
            if response is None and "whole" in request:  # it may have left with the last byte
                whole, size = request["whole"]
                response = whole if request["sent"] == size else None
            elif response is not None and not response.prepared:
                finish_headers(request, response)
            if response is not None and connection.has_said_all:
                response.force_close()
            log_access(request, response, time.monotonic() - began)
        return response

    return answer


def finish_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Add what every response carries. For those that are sent before they are returned."""
    response.headers["X-Request-ID"] = request["id"]
    request["cache-status"] = response.headers.get("Cache-Status", "-").removeprefix("pps-mirror; ")
    response.headers["Server"] = "pps-mirror"
    connection = request.protocol
    is_last = isinstance(connection, _Connection) and (connection.one_too_many or connection.has_said_all)
    if is_last or _something_follows(request):
        response.force_close()


def _something_follows(request: web.BaseRequest) -> bool:
    """Whether what comes next on the connection may be something else than a request.

    A body is of no use here, and who disagrees with us about its end (a proxy before us, say) could have its bytes
    read as a request of somebody else's: so such a connection has had its last request.
    """
    dubious = request.version not in {HttpVersion10, HttpVersion11}
    return dubious or request.body_exists or request.method == "CONNECT" or "Upgrade" in request.headers


class _Server(web.Server):
    def __init__(self, handler: Handler, *, crowd: Crowd, header_timeout: float, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self.take_up(crowd=crowd, header_timeout=header_timeout)
        self._open: dict[web.RequestHandler, asyncio.Transport] = {}
        self._busy: set[web.RequestHandler] = set()
        self._at_rest = asyncio.Event()
        self._stopping = False

    def take_up(self, *, crowd: Crowd, header_timeout: float) -> None:
        self.crowd = crowd
        self._header_timeout = header_timeout

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, keepalive_timeout=self._header_timeout, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: Any) -> None:
        super().connection_made(handler, transport)
        self._open[handler] = transport
        # Who asks and never reads the answers holds a connection no longer than who never asks; for an image, which a
        # client may need time to put somewhere, `mirror.http.send` allows more.
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(self._header_timeout * 1000))
        )
        if isinstance(handler, _Connection):
            handler.one_too_many = len(self._open) > self.crowd.most
        if self._stopping or len(self._open) > self.crowd.most + self.crowd.beyond:
            handler.force_close()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._open.pop(handler, None)
        self._rest(handler)

    @contextmanager
    def answering(self, handler: web.RequestHandler) -> Iterator[None]:
        """Mark a connection as one that stopping waits for, from then on until the last byte is with the kernel."""
        if handler in self._open:  # else it was lost while the handler was about to begin
            self._busy.add(handler)
        try:
            yield
        finally:
            if not self._stopping:
                self._rest(handler)

    def _rest(self, handler: web.RequestHandler) -> None:
        self._busy.discard(handler)
        if not self._busy:
            self._at_rest.set()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close what is idle, each other connection when its answer has been sent; reset what is left after `timeout`.

        Not aiohttp's way alone: it does not wait for what it has yet to send, waits for handlers twice that long, and
        then ends connections with a plain close, which some clients take for the end of a whole body.
        """
        self._stopping = True
        self._at_rest.clear()
        resetting = self._loop.call_later(timeout or 0.0, self._reset_all)
        try:
            await super().shutdown((timeout or 0.0) + RESET_SECONDS)
            if self._busy:
                await self._at_rest.wait()
        finally:
            resetting.cancel()

    def _reset_all(self) -> None:
        for transport in tuple(self._open.values()):
            reset(transport)


class _Connection(web.RequestHandler):
    """A connection of a client.

    One that says no more (the end of `printf ... | nc`) still wants its answers, as far as anybody can tell: who has
    left looks the same. So it gets them, and what tells the two apart is the answer to what is sent: by the next bytes,
    or by the kernel's probes when there are none for long. Over TLS asyncio knows no such state, and closes.
    """

    __slots__ = ("_half_closed", "_head", "_head_too_long", "one_too_many", "server")

    def __init__(self, manager: _Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.server = manager
        self.one_too_many = False
        self._half_closed = False
        self._head, self._head_too_long = 0, False

    @property
    def has_said_all(self) -> bool:
        """Whether what is answered now is its last request."""
        return self._half_closed and not self._messages

    def data_received(self, data: bytes) -> None:
        """Take what comes, but never keep a head in memory that does not end."""
        super().data_received(data)
        self._head = self._head + len(data) if self._is_idle else 0
        if self._head > heads.HEAD:
            self._head_too_long = True
            super().data_received(b"\0\r\n\r\n")  # which no head may have in it: it is answered, and nothing more read

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's own never keeps a connection
        """Whether the connection stays open to be answered."""
        if self.transport is None or self._is_idle or self.transport.get_extra_info("sslcontext") is not None:
            return False
        self._half_closed = True
        half_closed.probe(self.transport)
        self._watch()
        return True

    @property
    def _is_idle(self) -> bool:
        """Whether it waits for a request: nothing is being answered, nor to be answered."""
        return not self._messages and self._waiter is not None and not self._waiter.done()

    def _watch(self) -> None:
        """End it when it was answered, or when who asked turns out to have left."""
        if self.transport is None or self.transport.is_closing():
            return
        if self._is_idle:
            self.transport.close()
        elif half_closed.is_lost(self.transport):
            self.transport.abort()
        else:
            self._loop.call_later(half_closed.LOOK, self._watch)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, or too long, and what `_answering` did not catch."""
        # Only the kind of mistake: its text quotes what came, and that may be a credential.
        log.debug("cannot read a request from %s: %s", unmapped(request.remote), type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer has begun already")
        said = "the request failed"
        if self._head_too_long:
            status, said = HeadersTooLarge.status, heads.ALL_TOO_LONG
        elif status == BadRequest.status:
            status, said = heads.refusal(exc)
        response = message_response(status, said)
        request["id"] = secrets.token_hex(16)
        finish_headers(request, response)
        response.force_close()
        return response
