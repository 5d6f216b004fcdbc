"""Makes the responses of the registry: headers, and which bytes of a manifest or a blob. Others send the bytes."""

from datetime import UTC, datetime
from email.utils import format_datetime

from aiohttp import web
from multidict import CIMultiDict

from mirror.http.conditional import NotModified, Part, PreconditionFailed, Selection, Unsatisfiable
from mirror.http.exchange import marked
from mirror.http.registry_errors import registry_error
from mirror.model.cache_status import CacheStatus
from mirror.registry.refusals import RegistryError


class _NotThis(RegistryError):
    status, code = 412, "UNSUPPORTED"


class _NotSatisfiable(RegistryError):
    status, code = 416, "UNSUPPORTED"


def content_headers(digest: str, media_type: str, modified: datetime) -> CIMultiDict[str]:
    """Return the headers that every answer about a manifest or a blob has, except its length."""
    return CIMultiDict(
        {
            "Content-Type": media_type,
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Last-Modified": format_datetime(modified.astimezone(UTC), usegmt=True),
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Vary": "Authorization",
            "X-Content-Type-Options": "nosniff",
        }
    )


def bodiless(selection: Selection, headers: CIMultiDict[str], size: int) -> web.Response | None:
    """Return the answer to a request that gets no bytes (304, 412, 416); None when it gets some."""
    if isinstance(selection, NotModified):
        del headers["Content-Type"]
        return marked(web.Response(status=304, headers=headers), CacheStatus.HIT)
    if isinstance(selection, PreconditionFailed):
        return registry_error(_NotThis("what is here is not the version that was asked for (If-Match)"))
    if isinstance(selection, Unsatisfiable):
        response = registry_error(_NotSatisfiable(f"the range begins after the end ({size} bytes)"))
        response.headers["Content-Range"] = f"bytes */{size}"
        return response
    return None


def bodied(response: web.StreamResponse, selection: Selection, size: int) -> tuple[int, int]:
    """Make the response a 206 if it is to be one; return the bytes [start, stop) that follow its headers."""
    marked(response, CacheStatus.HIT)
    if not isinstance(selection, Part):
        return 0, size
    response.set_status(206)
    response.headers["Content-Range"] = f"bytes {selection.start}-{selection.stop - 1}/{size}"
    return selection.start, selection.stop
