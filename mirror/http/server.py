"""A listener: connections, their limits and timeouts, request ids, and the one place where errors become answers."""

import asyncio
import logging
import re
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web

from mirror.errors import BadRequest, ConfigError, MirrorError, Unavailable
from mirror.http.errors import error_response, message_response
from mirror.http.sending import reset
from mirror.log import event

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
LogAccess = Callable[[web.BaseRequest, web.StreamResponse | None, float], None]

BEYOND = 256
"""Connections above the limit that are told so; those above these are closed without a word."""

RESET_SECONDS = 5.0
"""How long, at most, requests may take to end after their connections were reset."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


class Listener:
    """Serves `handler` on one address.

    `header_timeout` in seconds bounds the time a connection may be open without a whole request, the first one and
    between two, and before them its TLS handshake, and the time for which a client may leave a small answer unread;
    `max_connections` is answered with 503 beyond; `drain` in seconds is what requests under way have to end when it
    stops; `share_port` lets other processes listen there as well, each getting its share of the connections. Must be
    made inside the running loop.
    """

    def __init__(
        self,
        handler: Handler,
        host: str,
        port: int,
        *,
        header_timeout: float,
        max_connections: int,
        drain: float,
        log_access: LogAccess | None = None,
        tls: ssl.SSLContext | None = None,
        share_port: bool = False,
    ) -> None:
        self._server = _Server(
            _answering(handler, log_access or (lambda *_: None)),
            handler_cancellation=True,
            lingering_time=1.0,
            auto_decompress=False,  # no request has a body that is of any use here: it is skipped
            max_connections=max_connections,
            header_timeout=header_timeout,
            access_log=None,
        )
        self._host, self._port, self._tls, self._share_port = host, port, tls, share_port
        self._header_timeout, self._drain = header_timeout, drain
        self._listening: asyncio.Server | None = None

    def take_up(self, *, header_timeout: float, max_connections: int, drain: float) -> None:
        """From now on these are its bounds, for connections that are made now; for TLS handshakes after a restart."""
        self._drain = drain
        self._server.take_up(max_connections=max_connections, header_timeout=header_timeout)

    @property
    def port(self) -> int:
        """The port it listens on, also when port 0 was asked for."""
        assert self._listening is not None  # noqa: S101 - it has been started
        return int(self._listening.sockets[0].getsockname()[1])

    async def start(self, passed: socket.socket | None = None) -> None:
        """Listen, or serve the socket that was `passed`. Raises ConfigError when the address cannot be had."""
        handshake_timeout = self._header_timeout if self._tls else None
        create_server = partial(
            asyncio.get_running_loop().create_server,
            self._server,
            ssl=self._tls,
            ssl_handshake_timeout=handshake_timeout,
            backlog=1024,
        )
        try:
            if passed is not None:
                self._listening = await create_server(sock=passed)
                return
            self._listening = await create_server(self._host, self._port, reuse_port=self._share_port or None)
        except OSError as error:
            raise ConfigError(f"cannot listen on {self._host} port {self._port}: {error.strerror}") from None

    async def stop(self) -> None:
        """Accept nothing new, close what is idle, let requests under way end for `drain` seconds, then reset them."""
        if self._listening is not None:
            self._listening.close()
        await asyncio.sleep(0)  # what was accepted last gets to be known
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
                    raise Unavailable(
                        f"the mirror has {connection.server.max_connections} connections open already "
                        "(server.max_connections)"
                    )
                if request.version not in {HttpVersion10, HttpVersion11}:
                    raise BadRequest("only HTTP/1.1 and HTTP/1.0 are understood here")
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
            log_access(request, response, time.monotonic() - began)
        return response

    return answer


def finish_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Add what every response carries. For those that are sent before they are returned."""
    response.headers["X-Request-ID"] = request["id"]
    request["cache-status"] = response.headers.get("Cache-Status", "-").removeprefix("pps-mirror; ")
    response.headers["Server"] = "pps-mirror"
    too_many = isinstance(request.protocol, _Connection) and request.protocol.one_too_many
    if too_many or _something_follows(request):
        response.force_close()


def _something_follows(request: web.BaseRequest) -> bool:
    """Whether what comes next on the connection may be something else than a request.

    A body is of no use here, and who disagrees with us about its end (a proxy before us, say) could have its bytes
    read as a request of somebody else's: so such a connection has had its last request.
    """
    dubious = request.version not in {HttpVersion10, HttpVersion11}
    return dubious or request.body_exists or request.method == "CONNECT" or "Upgrade" in request.headers


class _Server(web.Server):
    def __init__(self, handler: Handler, *, max_connections: int, header_timeout: float, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self.take_up(max_connections=max_connections, header_timeout=header_timeout)
        self._open: dict[web.RequestHandler, asyncio.Transport] = {}
        self._busy: set[web.RequestHandler] = set()
        self._at_rest = asyncio.Event()
        self._stopping = False

    def take_up(self, *, max_connections: int, header_timeout: float) -> None:
        self.max_connections = max_connections
        self._header_timeout = header_timeout

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, keepalive_timeout=self._header_timeout, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: Any) -> None:
        super().connection_made(handler, transport)
        self._open[handler] = transport
        # Who asks and never reads the answers holds a connection no longer than who never asks; for an image, which a
        # client may need time to put somewhere, `mirror.http.sending` allows more.
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(self._header_timeout * 1000))
        )
        if isinstance(handler, _Connection):
            handler.one_too_many = len(self._open) > self.max_connections
        if self._stopping or len(self._open) > self.max_connections + BEYOND:
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
    __slots__ = ("one_too_many", "server")

    def __init__(self, manager: _Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.server = manager
        self.one_too_many = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, and what `_answering` did not catch."""
        # Only the kind of mistake: its text quotes what came, and that may be a credential.
        log.debug("cannot read a request from %s: %s", request.remote, type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer has begun already")
        said = "this is not a request that the mirror can read" if status == 400 else "the request failed"
        response = message_response(status, said)
        request["id"] = secrets.token_hex(16)
        finish_headers(request, response)
        response.force_close()
        return response
