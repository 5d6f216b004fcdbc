"""How long a request's head may be, and what a client is told when its head is longer (RFC 6585 section 5).

The limits are generous: cookies of a whole company's domain, and tokens that list many groups, are long.
"""

from collections.abc import Iterable

from mirror.http.aiohttp_internals import has_too_many_fields, longest

LINE = 8 << 10
"""The most bytes that a request's target may have."""

FIELD = 16 << 10
"""The most bytes that one header field may have, with its name."""

FIELDS = 128
"""The most header fields that a request may have."""

HEAD = 64 << 10
"""The most bytes that all header fields may have together; no client can make the mirror keep more in memory."""

ALL_TOO_LONG = f"the header fields of this request are longer than {HEAD} bytes together; send fewer or smaller cookies"


def size(fields: Iterable[tuple[bytes, bytes]]) -> int:
    """Return how many bytes the header fields have as they were sent."""
    return sum([len(name) + len(value) + 4 for name, value in fields])


def refusal(mistake: BaseException | None) -> tuple[int, str]:
    """Return the status and the message for a head that the parser refused."""
    if (limit := longest(mistake)) is not None:
        if limit == LINE:
            return 414, f"the target of this request is longer than {LINE} bytes; no route here is"
        return 431, f"a header field of this request is longer than {FIELD} bytes; send fewer or smaller cookies"
    if has_too_many_fields(mistake):
        return 431, f"this request has more than {FIELDS} header fields; send fewer"
    return 400, "this is not a request that the mirror can read"
