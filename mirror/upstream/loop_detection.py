"""Loops of mirrors, as RFC 8586 finds them: a request toward upstream says by which caches it has come.

Each mirror adds a name of its own to `CDN-Loop`, and refuses what comes with that name: it has been here already. A
mirror behind a mirror is no loop. Who forges the header shuts out nobody but himself. It goes to upstream only, never
to where that redirects; a proxy or a load balancer that takes it away takes the protection away with it.
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
    """Read by which caches a request has come, as the header says it; empty for a client's.

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
    """The header of a request toward upstream; empty for one that comes by no mirror."""
    return ", ".join(each for each in (came_by, name) if each)
