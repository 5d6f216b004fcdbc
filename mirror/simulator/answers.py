"""Does what both listeners do with a request: logs it, applies faults, and puts the answer in its final shape."""

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web
from aiohttp.typedefs import Middleware

from mirror.simulator.faults import Fault
from mirror.simulator.record import Exchange, LoggedRequest, fingerprint
from mirror.simulator.sending import cut
from mirror.simulator.state import State

CONTROL = "/_sim/"
"""Paths of the control API; they are neither logged nor hindered."""

EXCHANGE = web.RequestKey("exchange", Exchange)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def recorder(state: State, listener: str) -> Middleware:
    """Make the middleware that logs every request to a listener, and answers in JSON where no route matches."""

    @web.middleware
    async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(CONTROL):
            return await handler(request)
        exchange = request[EXCHANGE] = state.log.begin(_asked(request, listener))
        try:
            response = await handler(request)
            exchange.status = response.status or None
            return response
        except web.HTTPException as error:
            exchange.status = error.status
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return json_answer(error.status, {"message": error.reason}, allow)
        finally:
            exchange.end()

    return record


def _asked(request: web.Request, listener: str) -> LoggedRequest:
    headers = request.headers
    authorization = headers.get("Authorization")
    return LoggedRequest(
        listener=listener,
        place=request.match_info.route.name or "",
        method=request.method,
        path=request.path,
        query=request.rel_url.raw_query_string,
        range=headers.get("Range"),
        if_range=headers.get("If-Range"),
        authorization=None if authorization is None else fingerprint(authorization),
        request_id=headers.get("X-Request-ID"),
        trace=headers.get("X-DataRobot-Api-Consumer-Trace"),
        accept_encoding=headers.get("Accept-Encoding"),
        cdn_loop=headers.get("CDN-Loop"),
        started=time.monotonic(),
    )


async def hinder(request: web.Request, fault: Fault, state: State) -> web.Response | None:
    """Apply the faults that come before an answer. A returned response is to be sent in place of the answer."""
    if fault.delay:
        await asyncio.sleep(fault.delay)
    if fault.hold:
        await state.wait_for_release()
    if not fault.drop:
        return None
    await cut(request.transport, reset=fault.reset)
    return web.Response(status=0)  # goes nowhere: the connection is closed


def settle(response: web.StreamResponse, fault: Fault, state: State) -> None:
    """Apply the faults that come when the answer is decided and before any of it is sent."""
    if fault.encoding is not None and isinstance(response, web.Response) and isinstance(response.body, bytes):
        if fault.encoding == "gzip":
            response.body = gzip.compress(response.body)
        if fault.encoding == "deflate":
            response.body = zlib.compress(response.body)
        response.headers["Content-Encoding"] = fault.encoding
    for name, value in (fault.headers or {}).items():
        if value is None:
            response.headers.pop(name, None)
        else:
            response.headers[name] = value
    state.decided(fault)


def json_answer(status: int, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """Make an answer of the API, whose type is exactly `application/json`."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return web.Response(status=status, body=content, headers={"Content-Type": "application/json", **(headers or {})})


def xml_error(status: int, code: str, message: str) -> web.Response:
    """Make an error of the object store, shaped as S3's are."""
    error = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    content = f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'
    return web.Response(status=status, body=content.encode(), headers={"Content-Type": "application/xml"})
