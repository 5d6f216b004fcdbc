"""How long a request line and header fields may be, and what a client is told whose are longer (RFC 6585 section 5).

Cookies of a whole company's domain, and tokens with many groups in them, are longer than one may think.
"""

from collections.abc import Iterable

from mirror.http.aiohttp_internals import has_too_many_fields, longest

LINE = 8 << 10
"""Bytes of a request's target, at most."""

FIELD = 16 << 10
FIELDS = 128
"""Bytes of one header field with its name, and fields of a request, at most."""

HEAD = 64 << 10
"""Bytes of all of them together, at most: what who never ends a head can have kept in memory."""

ALL_TOO_LONG = f"the header fields of this request are longer than {HEAD} bytes together; send fewer or smaller cookies"


def size(fields: Iterable[tuple[bytes, bytes]]) -> int:
    """How long they are on the line, in bytes."""
    return sum(len(name) + len(value) + 4 for name, value in fields)


def refusal(mistake: BaseException | None) -> tuple[int, str]:
    """The status and the words for a head that the parser did not take."""
    if (limit := longest(mistake)) is not None:
        if limit == LINE:
            return 414, f"the target of this request is longer than {LINE} bytes; no route here is"
        return 431, f"a header field of this request is longer than {FIELD} bytes; send fewer or smaller cookies"
    if has_too_many_fields(mistake):
        return 431, f"this request has more than {FIELDS} header fields; send fewer"
    return 400, "this is not a request that the mirror can read"
