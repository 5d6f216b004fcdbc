"""Renders errors as the official client reads them: `{"message": "..."}`, ASCII, exactly `application/json`."""

import json
import re
from collections.abc import Mapping

from aiohttp import web
from multidict import CIMultiDict

from mirror.model.errors import MirrorError, Unauthorized, UpstreamRefused

JSON = "application/json"

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")


def error_response(error: MirrorError) -> web.Response:
    """Render an error. Upstream's own refusals pass through with their body."""
    if isinstance(error, UpstreamRefused):
        return web.Response(status=error.status, body=error.body, headers=sendable(error.headers))
    response = message_response(error.status, error.message)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def sendable(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Return those of upstream's headers that are valid; others might be an attempt to smuggle in another header."""
    return CIMultiDict(
        (name, value) for name, value in headers.items() if _NAME.fullmatch(name) and _VALUE.fullmatch(value)
    )


def message_response(status: int, message: str) -> web.Response:
    """Make a response with that status, whose body says `message`."""
    body = json.dumps({"message": message}).encode("ascii")  # json escapes what is not ASCII
    return web.Response(status=status, body=body, headers={"Content-Type": JSON, "Cache-Control": "no-store"})
