"""Defines what a status of upstream or a redirect target means, in one table for metadata, the image and `get`."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum

from mirror.common import http_date


class Meaning(Enum):
    """What to do about a status."""

    OURS = "whoever asked knows what to do with it"
    PASSES = "the same request may be answered another time"
    FINAL = "the same request would be answered the same"


TABLE = (
    dict.fromkeys((100, 101, 201, 202, 203, 204, 205, 300, 304, 305, 306), Meaning.FINAL)
    | dict.fromkeys((400, 402, 405, 406, 407, 409, 410, 411, 412, 413, 414, 415, 417, 418, 422, 426), Meaning.FINAL)
    | dict.fromkeys((428, 431, 501, 505), Meaning.FINAL)
    # The image or a part of it, redirects, refusals, a range beyond the end, requests that go round in a loop.
    | dict.fromkeys((200, 206, 301, 302, 303, 307, 308, 401, 403, 404, 416, 508), Meaning.OURS)
    # 408, 421: on another connection (RFC 9110 sections 15.5.9, 15.5.20). 425: RFC 8470. 429 without a byte yet passes
    # through. 511: a portal on the way wants somebody to sign in.
    | dict.fromkeys((408, 421, 425, 429, 500, 502, 503, 504, 511), Meaning.PASSES)
)
"""RFC 9110 section 15, RFC 6585, and those that are named."""


def meaning(status: int) -> Meaning:
    """Look the status up; one that is not in the table means what the first of its class does (section 15)."""
    return TABLE.get(status) or (Meaning.PASSES if status >= 500 else Meaning.FINAL)


def passes(status: int) -> bool:
    """Return whether the same request may get another answer later."""
    return meaning(status) is Meaning.PASSES


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> int | None:
    """Read `Retry-After` (RFC 9110 section 10.2.3) as seconds from `now`, an hour at most; None when there is none.

    A date counts from the answer's own `Date`, if it has one: the two clocks may differ.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:9]), 3600)
    now = now or datetime.now(UTC)
    until = http_date.parse(text, now)
    if until is None:
        return None
    sent = http_date.parse(headers.get("Date", ""), now) or now
    return min(max(0, math.ceil((until - sent).total_seconds())), 3600)
