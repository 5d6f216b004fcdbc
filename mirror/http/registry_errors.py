"""Renders errors as container engines read them: `{"errors": [{"code", "message", "detail"}]}`."""

import contextlib
import json

from aiohttp import web

from mirror.http.errors import JSON, sendable
from mirror.model.errors import MirrorError, NotFound, Unauthorized, UpstreamRefused
from mirror.registry.refusals import RegistryError

CHALLENGE = 'Basic realm="pps-mirror"'
"""What every 401 asks for. `docker login` fails where a Bearer challenge is and no server that gives tokens."""

_LONGEST = 500
"""Characters of upstream's own words that are passed on."""


def registry_error(error: MirrorError) -> web.Response:
    """Render an error. Upstream's refusals keep their meaning and words; what else fails there is 503."""
    status, code, message = _rendered(error)
    body = json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode("ascii")
    response = web.Response(status=status, body=body, headers={"Content-Type": JSON, "Cache-Control": "no-store"})
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, UpstreamRefused) and (after := sendable(error.headers).get("Retry-After")):
        response.headers["Retry-After"] = after
    if status == Unauthorized.status:
        response.headers["WWW-Authenticate"] = CHALLENGE
    return response


def _rendered(error: MirrorError) -> tuple[int, str, str]:
    if isinstance(error, RegistryError):
        return error.status, error.code, error.message
    said = _words(error.body) if isinstance(error, UpstreamRefused) else error.message
    match error.status:
        case 401:
            return 401, "UNAUTHORIZED", said or "log in with any user name and a DataRobot API token as the password"
        case 403:
            return 403, "DENIED", said or "DataRobot refuses this token"
        case NotFound.status:
            return 404, "NAME_UNKNOWN", said or "DataRobot has no image for this token"
        case 429:
            return 429, "TOOMANYREQUESTS", said or "DataRobot is asked too often; come back later"
        case status if status < 500:
            return status, "UNSUPPORTED", error.message
        case _:
            return 503, "UNAVAILABLE", error.message


def _words(body: bytes) -> str | None:
    """Return the message in upstream's own answer, if there is one."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        if isinstance(said := json.loads(body)["message"], str) and said.isprintable():
            return said[:_LONGEST]
    return None
