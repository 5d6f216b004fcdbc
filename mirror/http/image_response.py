"""Makes the response for an image: status, headers and which bytes. `mirror.http.send` sends the bytes."""

import re
from base64 import b64encode
from datetime import UTC
from email.utils import format_datetime
from urllib.parse import quote

from aiohttp import web
from multidict import CIMultiDict

from mirror.http.conditional import NotModified, Part, PreconditionFailed, Selection, Unsatisfiable
from mirror.http.errors import message_response
from mirror.http.exchange import marked
from mirror.model.cache_status import CacheStatus
from mirror.model.metadata import ImageMetadata


def image_headers(metadata: ImageMetadata) -> CIMultiDict[str]:
    """Return the headers that every answer about an image has, be it 200, 206 or 304, except its length."""
    return CIMultiDict(
        {
            "ETag": f'"{metadata.hash}"',
            "Last-Modified": format_datetime(metadata.created.astimezone(UTC), usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Content-Disposition": content_disposition(metadata.filename, f"{metadata.hash[:12]}.tar.gz"),
            "Repr-Digest": f"sha-256=:{b64encode(bytes.fromhex(metadata.hash)).decode()}:",
            "Cache-Control": "private, no-cache",
            "Vary": "Authorization",
            "X-Content-Type-Options": "nosniff",
        }
    )


def content_disposition(filename: str, otherwise: str) -> str:
    """Return a header that proposes a safe file name (RFC 6266), in ASCII and, where that differs, in UTF-8."""
    name = safe_name(filename, otherwise)
    plain = re.sub(r"[^ !#-\[\]-~]", "_", name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'


def safe_name(filename: str, otherwise: str) -> str:
    """Make upstream's file name safe to save: one path component, not hidden, no control characters."""
    name = re.split(r"[/\\]", filename)[-1]
    return "".join(c for c in name if c.isprintable()).strip().lstrip(".")[:200] or otherwise


def bodiless(metadata: ImageMetadata, selection: Selection, status: CacheStatus) -> web.Response | None:
    """Return the answer to a request that gets no bytes of the image (304, 412, 416); None when it gets some."""
    if isinstance(selection, NotModified):
        headers = image_headers(metadata)
        del headers["Content-Type"], headers["Content-Disposition"]
        return marked(web.Response(status=304, headers=headers), status)
    if isinstance(selection, PreconditionFailed):
        return message_response(412, "the image here is another version than the one asked for (If-Match)")
    if isinstance(selection, Unsatisfiable):
        response = message_response(416, f"the range begins after the end of the image ({metadata.size} bytes)")
        response.headers["Content-Range"] = f"bytes */{metadata.size}"
        return response
    return None


def redirection(metadata: ImageMetadata, url: str) -> web.Response:
    """Return the 302 to a URL that has the image; no cache may keep it."""
    headers = image_headers(metadata)
    del headers["Content-Type"], headers["Content-Disposition"], headers["Accept-Ranges"]
    headers["Location"] = url
    headers["Cache-Control"] = "no-store"
    return marked(web.Response(status=302, headers=headers), CacheStatus.HIT)


def bodied(metadata: ImageMetadata, selection: Selection, status: CacheStatus) -> tuple[web.StreamResponse, int, int]:
    """Return the 200 or 206, and the bytes [start, stop) that follow its headers."""
    response = marked(web.StreamResponse(headers=image_headers(metadata)), status)
    start, stop = 0, metadata.size
    if isinstance(selection, Part):
        start, stop = selection.start, selection.stop
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{metadata.size}"
    response.content_length = stop - start
    return response, start, stop
