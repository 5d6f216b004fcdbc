"""A listener: connections, their limits and timeouts, request ids, and the one place where errors become answers."""

import logging
import re
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from mirror.errors import ConfigError, MirrorError, Unavailable
from mirror.http.errors import error_response, message_response

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
LogAccess = Callable[[web.BaseRequest, web.StreamResponse | None, float], None]

BEYOND = 256
"""Connections above the limit that are told so; those above these are closed without a word."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


class Listener:
    """Serves `handler` on one address.

    `header_timeout` in seconds bounds the time a connection may be open without a whole request, the first one and
    between two; `max_connections` is answered with 503 beyond; `share_port` lets other processes listen there as well,
    each getting its share of the connections. Must be made inside the running loop.
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
        server = _Server(
            _answering(handler, max_connections, log_access or (lambda *_: None)),
            handler_cancellation=True,
            keepalive_timeout=header_timeout,
            lingering_time=1.0,
            max_connections=max_connections,
            access_log=None,
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=drain)
        self._host, self._port, self._tls, self._share_port = host, port, tls, share_port

    @property
    def port(self) -> int:
        """The port it listens on, also when port 0 was asked for."""
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listen. Raises ConfigError when the address cannot be had."""
        await self._runner.setup()
        site = web.TCPSite(
            self._runner,
            self._host,
            self._port,
            ssl_context=self._tls,
            backlog=1024,
            reuse_port=True if self._share_port else None,
        )
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {self._host} port {self._port}: {error.strerror}") from None

    async def stop(self) -> None:
        """Accept nothing new, let what is under way end for `drain` seconds, then cut it off."""
        await self._runner.cleanup()


def _answering(handler: Handler, max_connections: int, log_access: LogAccess) -> Handler:
    """Give each request its id, make every way it can end an answer, and log it, also when the client left."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        began = time.monotonic()
        given = request.headers.get("X-Request-ID", "")
        request["id"] = given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)
        response: web.StreamResponse | None = None
        try:
            if isinstance(request.protocol, _Connection) and request.protocol.one_too_many:
                raise Unavailable(f"the mirror has {max_connections} connections open already (server.max_connections)")
            response = await handler(request)
        except MirrorError as error:
            response = error_response(error)
        except Exception:
            log.exception("request %s failed", request["id"])
            response = message_response(500, f"the mirror made a mistake; its log says more under {request['id']}")
        finally:
            if response is not None and not response.prepared:
                finish_headers(request, response)
            log_access(request, response, time.monotonic() - began)
        return response

    return answer


def finish_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Add what every response carries. For those that are sent before they are returned."""
    response.headers["X-Request-ID"] = request["id"]
    request["cache-status"] = response.headers.get("Cache-Status", "-").removeprefix("pps-mirror; ")
    response.headers["Server"] = "pps-mirror"
    if isinstance(request.protocol, _Connection) and request.protocol.one_too_many:
        response.force_close()


class _Server(web.Server):
    def __init__(self, handler: Handler, *, max_connections: int, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self.max_connections = max_connections
        self.open = 0

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: Any) -> None:
        super().connection_made(handler, transport)
        self.open += 1
        if isinstance(handler, _Connection):
            handler.one_too_many = self.open > self.max_connections
        if self.open > self.max_connections + BEYOND:
            handler.force_close()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.open -= 1


class _Connection(web.RequestHandler):
    __slots__ = ("one_too_many",)

    def __init__(self, manager: web.Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.one_too_many = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, and what `_answering` did not catch."""
        log.debug("cannot read a request from %s: %s", request.remote, message or exc)
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer has begun already")
        said = "this is not a request that the mirror can read" if status == 400 else "the request failed"
        response = message_response(status, said)
        request["id"] = secrets.token_hex(16)
        finish_headers(request, response)
        response.force_close()
        return response
