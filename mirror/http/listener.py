"""Listens on a port, passes each request to a handler, and turns every error into an answer, here and nowhere else."""

import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from mirror.common.log import event
from mirror.http import head_limits as heads
from mirror.http.accept import Acceptor
from mirror.http.bind import listening, unusable
from mirror.http.connection import ConnectionLimits, HttpServer
from mirror.http.errors import error_response, message_response
from mirror.http.exchange import Exchange
from mirror.model.errors import BadRequest, HeadersTooLarge, MirrorError, Unavailable

log = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]
"""Answers a request. Returns the response, which it may have sent already. Raises MirrorError."""

Ended = Callable[[Exchange, float], None]
"""Is called when an exchange has ended, also by the client's leaving, with the seconds that it took."""


class Listener:
    """Serves `handler` on one address.

    `header_timeout` bounds the seconds that a client may take for its TLS handshake, for its first request, between two
    requests, and to read a small answer. `limits` says how many connections there may be. `drain` is how many seconds
    running requests get to finish when the listener stops. Must be made inside the running loop.
    """

    def __init__(
        self,
        handler: Handler,
        host: str,
        port: int,
        *,
        header_timeout: float,
        limits: ConnectionLimits,
        drain: float,
        ended: Ended | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._server = HttpServer(
            _answering(handler, ended or (lambda *_: None)),
            lingering_time=1.0,
            max_line_size=heads.LINE,
            max_field_size=heads.FIELD,
            max_headers=heads.FIELDS,
            auto_decompress=False,  # bodies are of no use here, and are skipped
            limits=limits,
            header_timeout=header_timeout,
        )
        self._host, self._port, self._tls = host, port, tls
        self._header_timeout, self._drain = header_timeout, drain
        self._acceptor: Acceptor | None = None

    def take_up(self, *, header_timeout: float, limits: ConnectionLimits, drain: float) -> None:
        """Apply these to connections that are made from now on; TLS handshakes keep their timeout until a restart."""
        self._drain = drain
        self._server.take_up(limits=limits, header_timeout=header_timeout)

    @property
    def port(self) -> int:
        """The port that it listens on; the real one when port 0 was configured."""
        return self._port

    async def start(self, passed: Sequence[socket.socket] = ()) -> None:
        """Serve the `passed` listening sockets, or else open our own.

        Raises ConfigError when the address cannot be had, or AddressUnavailable when it may be later.
        """
        try:
            sockets = passed or listening(self._host, self._port)
        except OSError as error:
            raise unusable(self._host, self._port, error) from None
        self._port = int(sockets[0].getsockname()[1])
        self._acceptor = Acceptor(sockets, self._server, self._tls, self._header_timeout)

    async def stop(self) -> None:
        """Stop accepting, close idle connections, give running requests `drain` seconds to finish, then reset them."""
        if self._acceptor is not None:
            await self._acceptor.close()
        self._server.pre_shutdown()
        await self._server.shutdown(self._drain)


def _answering(handler: Handler, ended: Ended) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Wrap a handler: begin an exchange for each request, turn errors into answers, and report the end."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        exchange = Exchange.of(request)
        connection = exchange.connection
        response: web.StreamResponse | None = None
        try:
            connection.server.begin_answer(connection)
            if connection.one_too_many:
                raise Unavailable(connection.server.limits.message)
            if not exchange.speaks_http:
                raise BadRequest("only HTTP/1.1 and HTTP/1.0 are understood here")
            if heads.size(request.raw_headers) > heads.HEAD:
                raise HeadersTooLarge(heads.ALL_TOO_LONG)
            response = await handler(exchange)
        except MirrorError as error:
            response = error_response(error)
        except Exception:
            log.exception("request %s failed", exchange.id, extra=event("mirror.mistake", request=exchange.id))
            response = message_response(500, f"the mirror made a mistake; its log says more under {exchange.id}")
        finally:
            connection.server.end_answer(connection)
            if response is None and exchange.is_sent:  # the client may have left with the last byte
                response = exchange.response
            elif response is not None and not response.prepared:
                exchange.complete(response)
            if response is not None and connection.has_said_all:
                response.force_close()
            exchange.response = response
            ended(exchange, time.monotonic() - began)
        return response

    return answer
