"""The routes of the admin listener: health, metrics, the status page, and the few changes an operator may make."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

from aiohttp import web

from mirror.admin.actions import Operator
from mirror.admin.overview import Overview
from mirror.http.admin_auth import AdminAccess
from mirror.http.errors import JSON, error_response, message_response
from mirror.http.exchange import Exchange
from mirror.http.page import Page
from mirror.model.errors import MirrorError, NotFound, Unauthorized
from mirror.model.status import Done, Health, Status, as_json

PUSH_SECONDS = 1.0
"""Seconds between two checks whether the status has changed and must be pushed."""

HEARTBEAT = 15.0
"""Seconds without a change after which a comment is sent, so that proxies keep the stream open."""

AUDITED = 1000
"""How many records `/api/audit` gives at most."""

WATCHED = 32
"""How many event streams may be open at once; further ones get 503."""

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
_PREFETCH = "/api/prefetch"
_IMAGE = re.compile(r"/api/images/([0-9A-Za-z]{1,64})(?:/(pin|unpin|verify))?")

Answer = Callable[[Exchange], Awaitable[web.StreamResponse]]


class AdminApi:
    """Answers the requests of the admin listener. `health` finds out whether the mirror can serve."""

    def __init__(
        self,
        health: Callable[[], Awaitable[Health]],
        overview: Overview,
        operator: Operator,
        access: AdminAccess,
        page: Page,
    ) -> None:
        self._health = health
        self._overview = overview
        self._operator = operator
        self._access = access
        self._page = page
        self._watched = 0
        self._public: dict[str, Answer] = {"/healthz": self._alive, "/readyz": self._ready, "/metrics": self._metrics}
        self._private: dict[str, Answer] = {
            "/": self._show,
            "/style.css": self._style,
            "/script.js": self._script,
            "/api/status": self._status,
            "/api/events": self._events,
            "/api/audit": self._audit,
        }

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        """Answer one request."""
        try:
            return await self._answer(exchange)
        except Unauthorized as error:
            response = error_response(error)
            if (
                self._path_of(exchange.request.path) in self._private
            ):  # these are opened by browsers; a refused button must not open a password dialog
                response.headers.add("WWW-Authenticate", 'Basic realm="pps-mirror", charset="UTF-8"')
            return response

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        path = self._path_of(exchange.request.path)
        if answer := self._public.get(path) or self._private.get(path):
            if exchange.request.method not in {"GET", "HEAD"}:
                return _not_allowed("GET, HEAD")
            if path in self._private:
                self._access.may_look(exchange.request)
            return await answer(exchange)
        if path == _PREFETCH:
            return await self._change(exchange, "POST", "prefetch", "current", self._operator.prefetch)
        if match := _IMAGE.fullmatch(path):
            return await self._change_image(exchange, match[1], match[2])
        raise NotFound("there is nothing here; see /, /healthz, /readyz, /metrics and /api/status")

    def _path_of(self, asked: str) -> str:
        """Remove the prefix from a path, unless the path is known as it is: then the proxy has removed it."""
        path, prefix = asked.rstrip("/") or "/", self._page.prefix
        known = path in self._public or path in self._private or path == _PREFETCH or _IMAGE.fullmatch(path)
        if not known and f"{path}/".startswith(f"{prefix}/"):
            path = path.removeprefix(prefix) or "/"
        return path

    async def _change_image(self, exchange: Exchange, name: str, action: str | None) -> web.StreamResponse:
        operator = self._operator
        match action:
            case None:
                force = exchange.request.rel_url.query.get("force") == "true"
                did = "delete by force" if force else "delete"
                return await self._change(exchange, "DELETE", did, name, lambda: operator.remove(name, force=force))
            case "verify":
                return await self._change(exchange, "POST", action, name, lambda: operator.verify(name))
            case _:
                pinned = action == "pin"
                return await self._change(exchange, "POST", action, name, lambda: operator.pin(name, pinned=pinned))

    async def _change(
        self, exchange: Exchange, method: str, action: str, what: str, change: Callable[[], Awaitable[Done]]
    ) -> web.StreamResponse:
        if exchange.request.method != method:
            return _not_allowed(method)
        who = self._access.may_change(exchange.request)
        return _json(200, as_json(await self._operator.recorded(who, action, what, change)))

    # Public

    async def _alive(self, exchange: Exchange) -> web.StreamResponse:
        return _json(200, {"alive": True})

    async def _ready(self, exchange: Exchange) -> web.StreamResponse:
        health = await self._health()
        said = {"ready": not health.reasons, "reasons": list(health.reasons), "degraded": list(health.degraded)}
        return _json(503 if health.reasons else 200, said)

    async def _metrics(self, exchange: Exchange) -> web.StreamResponse:
        body, content_type = await self._overview.exposition(exchange.request.headers.get("Accept", ""))
        return _response(body, content_type)

    # With the token, where one is needed

    async def _show(self, exchange: Exchange) -> web.StreamResponse:
        return _response(self._page.render(await self._overview.status()).encode(), "text/html; charset=utf-8")

    async def _style(self, exchange: Exchange) -> web.StreamResponse:
        return _response(self._page.style, "text/css; charset=utf-8")

    async def _script(self, exchange: Exchange) -> web.StreamResponse:
        return _response(self._page.script, "text/javascript; charset=utf-8")

    async def _status(self, exchange: Exchange) -> web.StreamResponse:
        return _json(200, as_json(await self._overview.status()))

    async def _audit(self, exchange: Exchange) -> web.StreamResponse:
        return _json(200, as_json(await self._operator.audit(AUDITED)))

    async def _events(self, exchange: Exchange) -> web.StreamResponse:
        """Push the status whenever it has changed, as server-sent events (HTML standard, section 9.2)."""
        if exchange.request.method == "HEAD":
            return _response(b"", "text/event-stream")
        if self._watched >= WATCHED:
            raise TooManyWatch("as many watch already as can; look at /api/status instead")
        unbuffered = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}  # the second is for nginx
        response = web.StreamResponse(headers=_HEADERS | unbuffered)
        self._watched += 1
        try:
            await exchange.begin(response)
            await self._push(response)
        except ConnectionError:
            pass
        finally:
            self._watched -= 1
        return response

    async def _push(self, response: web.StreamResponse) -> None:
        clock = asyncio.get_running_loop().time
        said: Status | None = None
        spoke = clock()
        while True:
            status = await self._overview.status()
            if said is None or replace(status, now=said.now) != said:
                said = status
                await response.write(b"event: status\ndata: " + json.dumps(as_json(status)).encode() + b"\n\n")
                spoke = clock()
            elif clock() - spoke > HEARTBEAT:
                await response.write(b": still here\n\n")
                spoke = clock()
            await asyncio.sleep(PUSH_SECONDS)


class TooManyWatch(MirrorError):
    """The maximum number of event streams is open."""

    status = 503


def _not_allowed(methods: str) -> web.Response:
    response = message_response(405, f"only {methods} is understood here")
    response.headers["Allow"] = methods
    return response


def _response(body: bytes, content_type: str, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, headers=_HEADERS | {"Content-Type": content_type})


def _json(status: int, value: object) -> web.Response:
    return _response(json.dumps(value).encode(), JSON, status)
