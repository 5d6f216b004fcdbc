"""Finds loops of mirrors as RFC 8586 does: a request toward upstream lists the caches that it came through.

Each mirror adds its own name to `CDN-Loop`, and refuses a request with that name, since it has been here already. A
mirror behind a mirror is no loop. A client that forges the header shuts out only itself. The header goes to upstream
only, never to the target of a redirect. A proxy or load balancer that removes the header removes the protection as
well.
"""

import re
import secrets

from multidict import CIMultiDictProxy

from mirror.model.errors import BadRequest, LoopDetected

HEADER = "CDN-Loop"

LONGEST = 2048
"""The most characters of the header, enough for some eighty mirrors in a row."""

_PLAIN = re.compile(r"[\t\x20-\x7e]*")


def new_name() -> str:
    """Make the name of a mirror, which all of its processes share until it ends."""
    return f"pps-mirror-{secrets.token_hex(8)}"


def came_by(headers: CIMultiDictProxy[str], name: str) -> str:
    """Return the caches that a request came through, as its header lists them; empty for a client's own request."""
    if HEADER not in headers:
        return ""
    text = ", ".join(headers.getall(HEADER)).strip()
    if len(text) > LONGEST or not _PLAIN.fullmatch(text):
        raise BadRequest(f"the {HEADER} header is too long, or has characters that no name of a cache has")
    if name in (each.partition(";")[0].strip() for each in text.split(",")):
        raise LoopDetected(
            "this request has been here before: upstream.url of this mirror, or of one that it asks, leads back here; "
            "set it to the address of DataRobot"
        )
    return text


def onward(came_by: str, name: str | None) -> str:
    """Return the header of a request toward upstream; empty for a request that came through no mirror."""
    return ", ".join(each for each in (came_by, name) if each)
