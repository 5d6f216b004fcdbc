"""The admin listener: is it alive, is it able to serve."""

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from mirror.errors import NotFound
from mirror.http.errors import JSON, message_response


class AdminApi:
    """Answers the requests of the admin listener. `reasons` says in words why the mirror cannot serve, if it cannot."""

    def __init__(self, reasons: Callable[[], Awaitable[list[str]]]) -> None:
        self._reasons = reasons

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.path.rstrip("/")
        if path not in {"/healthz", "/readyz"}:
            raise NotFound("there is nothing here; see /healthz and /readyz")
        if request.method not in {"GET", "HEAD"}:
            response = message_response(405, "only GET and HEAD are understood here")
            response.headers["Allow"] = "GET, HEAD"
            return response
        if path == "/healthz":
            return _json(200, {"alive": True})
        reasons = await self._reasons()
        return _json(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})


def _json(status: int, value: object) -> web.Response:
    headers = {"Content-Type": JSON, "Cache-Control": "no-store"}
    return web.Response(status=status, body=json.dumps(value).encode(), headers=headers)
