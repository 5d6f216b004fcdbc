"""The connections of a listener: how many there may be, what ends each of them, and how they all stop.

Knows nothing about requests and answers.
"""

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from mirror.common.hosts import unmapped
from mirror.http import head_limits as heads
from mirror.http import tcp
from mirror.http.aiohttp_internals import PrivateConnection, PrivateServer
from mirror.http.errors import message_response
from mirror.model.errors import BadRequest, HeadersTooLarge

log = logging.getLogger(__name__)

RESET_SECONDS = 5.0
"""Seconds that requests may take to end after their connections were reset."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections are `served` at most; `refused` more get 503 with the `message`, and others are closed."""

    served: int
    refused: int
    message: str


class HttpServer(PrivateServer):
    """Holds all connections of one listener. `mirror.http.listener.Listener` explains `header_timeout`."""

    def __init__(self, handler: Any, *, limits: ConnectionLimits, header_timeout: float, **options: Any) -> None:
        super().__init__(handler, handler_cancellation=True, access_log=None, **options)
        self.take_up(limits=limits, header_timeout=header_timeout)
        self._open: dict[web.RequestHandler, asyncio.Transport] = {}
        self._busy: set[web.RequestHandler] = set()
        self._at_rest = asyncio.Event()
        self._stopping = False

    def take_up(self, *, limits: ConnectionLimits, header_timeout: float) -> None:
        """Apply these to connections that are made from now on."""
        self.limits = limits
        self._header_timeout = header_timeout

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of a connection."""
        return self.connection(HttpConnection, keepalive_timeout=self._header_timeout)

    def connection_made(self, handler: web.RequestHandler, transport: Any) -> None:
        """Count a connection, and close it at once when there are too many to answer even with 503."""
        super().connection_made(handler, transport)
        self._open[handler] = transport
        # A client that asks and never reads the answers holds a connection no longer than one that never asks; for an
        # image, which a client may need time to put somewhere, `mirror.http.send` allows more.
        tcp.bound_unread(transport, self._header_timeout)
        if isinstance(handler, HttpConnection):
            handler.one_too_many = len(self._open) > self.limits.served
        if self._stopping or len(self._open) > self.limits.served + self.limits.refused:
            handler.force_close()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection that has ended."""
        super().connection_lost(handler, exc)
        self._open.pop(handler, None)
        self._rest(handler)

    def begin_answer(self, handler: web.RequestHandler) -> None:
        """Make `shutdown` wait for this connection until the kernel has the last byte of its answer."""
        if handler in self._open:  # otherwise it was lost while the handler was about to begin
            self._busy.add(handler)

    def end_answer(self, handler: web.RequestHandler) -> None:
        """Let `shutdown` wait no more, unless it has begun: then it waits until the connection is closed."""
        if not self._stopping:
            self._rest(handler)

    def _rest(self, handler: web.RequestHandler) -> None:
        self._busy.discard(handler)
        if not self._busy:
            self._at_rest.set()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close idle connections, close each other one when its answer is sent, and reset the rest after `timeout`.

        aiohttp's own shutdown is not enough: it does not wait for bytes that are yet to be sent, waits for handlers
        twice as long as it is told, and then closes connections, which some clients take for the end of a whole body.
        """
        self._stopping = True
        self._at_rest.clear()
        resetting = asyncio.get_running_loop().call_later(timeout or 0.0, self._reset_all)
        try:
            await super().shutdown((timeout or 0.0) + RESET_SECONDS)
            if self._busy:
                await self._at_rest.wait()
        finally:
            resetting.cancel()

    def _reset_all(self) -> None:
        for transport in tuple(self._open.values()):
            tcp.reset(transport)


class HttpConnection(PrivateConnection):
    """One connection. `server` made it; `one_too_many` says that it gets 503 because too many others are open.

    A client that closes its sending side (as the end of `printf ... | nc` does) may still wait for its answers, but one
    that has left looks the same. So it gets them. Only what the client's kernel replies to the bytes we send, or to the
    kernel's probes when we send none for long, tells the two apart. asyncio knows no such state over TLS, and closes.
    """

    __slots__ = ("_half_closed", "_head", "_head_too_long", "one_too_many", "server")

    def __init__(self, manager: HttpServer, **options: Any) -> None:
        super().__init__(manager, **options)
        self.server = manager
        self.one_too_many = False
        self._half_closed = False
        self._head, self._head_too_long = 0, False

    @property
    def has_said_all(self) -> bool:
        """Whether the client has closed its sending side, and its last request is being answered."""
        return self._half_closed and not self.has_more_requests

    def data_received(self, data: bytes) -> None:
        """Read bytes, but stop at a head that never ends, so that it does not fill the memory."""
        super().data_received(data)
        self._head = self._head + len(data) if self.is_idle else 0
        if self._head > heads.HEAD:
            self._head_too_long = True
            self.read_no_more()

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's own never keeps a connection
        """Return whether the connection stays open, because answers are still to be sent."""
        if self.transport is None or self.is_idle or self.transport.get_extra_info("sslcontext") is not None:
            return False
        self._half_closed = True
        tcp.probe(self.transport)
        self._watch()
        return True

    def _watch(self) -> None:
        """Close the connection when all is answered, or when its client turns out to have left."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.is_idle:
            self.transport.close()
        elif tcp.is_lost(self.transport):
            self.transport.abort()
        else:
            asyncio.get_running_loop().call_later(tcp.LOOK, self._watch)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is not HTTP or too long, and any error that the listener did not catch."""
        # Only the kind of mistake is logged: its text quotes the request, which may contain a credential.
        log.debug("cannot read a request from %s: %s", unmapped(request.remote), type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer has begun already")
        said = "the request failed"
        if self._head_too_long:
            status, said = HeadersTooLarge.status, heads.ALL_TOO_LONG
        elif status == BadRequest.status:
            status, said = heads.refusal(exc)
        response = message_response(status, said)
        identify(response, new_id())
        response.force_close()
        return response


def new_id() -> str:
    """Make an id for a request that has none. It is no secret, and need only differ from others."""
    return f"{random.getrandbits(128):032x}"  # Python seeds it anew in each forked worker


def identify(response: web.StreamResponse, request_id: str) -> None:
    """Add the headers that every answer has: the request's id, and the server's name."""
    response.headers["X-Request-ID"] = request_id
    response.headers["Server"] = "pps-mirror"
