"""The admin listener: is it alive, is it able to serve."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from mirror.errors import NotFound
from mirror.http.errors import JSON, message_response


@dataclass(frozen=True, slots=True)
class Health:
    """In words: what keeps the mirror from serving, and what it has to do without meanwhile."""

    reasons: Sequence[str] = ()
    degraded: Sequence[str] = ()


class AdminApi:
    """Answers the requests of the admin listener. `health` finds out how the mirror is."""

    def __init__(self, health: Callable[[], Awaitable[Health]]) -> None:
        self._health = health

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
        health = await self._health()
        said = {"ready": not health.reasons, "reasons": list(health.reasons), "degraded": list(health.degraded)}
        return _json(503 if health.reasons else 200, said)


def _json(status: int, value: object) -> web.Response:
    headers = {"Content-Type": JSON, "Cache-Control": "no-store"}
    return web.Response(status=status, body=json.dumps(value).encode(), headers=headers)
