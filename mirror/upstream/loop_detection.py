"""Finds loops of mirrors by RFC 8586: a request to upstream says through which mirrors it came.

Each mirror adds a name of its own to `CDN-Loop`, and refuses a request that has this name already. A mirror behind a
mirror is no loop. A client that forges the header shuts out only itself. The header goes to upstream, never to where
that redirects; if a proxy or a load balancer removes it, loops are not found.
"""

import re
import secrets

from multidict import CIMultiDictProxy

from mirror.model.errors import BadRequest, LoopDetected

HEADER = "CDN-Loop"

LONGEST = 2048
"""Characters of the header at most, which is some eighty mirrors in a row."""

_PLAIN = re.compile(r"[\t\x20-\x7e]*")


def new_name() -> str:
    """Make the name of one mirror, which all of its processes share until it ends."""
    return f"pps-mirror-{secrets.token_hex(8)}"


def came_by(headers: CIMultiDictProxy[str], name: str) -> str:
    """Return the header's list of mirrors through which a request came; empty for a client's own request.

    Raises LoopDetected when `name` is among them, BadRequest for a header that cannot be passed on.
    """
    text = ", ".join(headers.getall(HEADER, ())).strip()
    if len(text) > LONGEST or not _PLAIN.fullmatch(text):
        raise BadRequest(f"the {HEADER} header is too long, or has characters that no name of a cache has")
    if name in (each.partition(";")[0].strip() for each in text.split(",")):
        raise LoopDetected(
            "this request has been here before: upstream.url of this mirror, or of one that it asks, leads back here; "
            "set it to the address of DataRobot"
        )
    return text


def onward(came_by: str, name: str | None) -> str:
    """Return the header of a request to upstream; empty when no mirror serves it."""
    return ", ".join(each for each in (came_by, name) if each)
