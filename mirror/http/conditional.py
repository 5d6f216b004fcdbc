"""Decides which part of an image a request gets, if any: preconditions and ranges (RFC 9110 sections 13 and 14).

This is pure logic. An image has one strong ETag (its hash) and a `Last-Modified` of whole seconds. HEAD has no ranges
(section 14.2).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mirror.common import http_date

_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.IGNORECASE | re.ASCII)
_ETAG = re.compile(r'[ \t]*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*(?:,|$)')


@dataclass(frozen=True, slots=True)
class Whole:
    """200 with everything."""


@dataclass(frozen=True, slots=True)
class Part:
    """206 with the bytes [start, stop); `start` inclusive, `stop` exclusive."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """416: the range begins after the end."""


@dataclass(frozen=True, slots=True)
class NotModified:
    """304: the client has it."""


@dataclass(frozen=True, slots=True)
class PreconditionFailed:
    """412: the client asked for another version."""


Selection = Whole | Part | Unsatisfiable | NotModified | PreconditionFailed


def select(method: str, headers: Mapping[str, str], *, etag: str, modified: datetime, size: int) -> Selection:
    """Evaluate the preconditions in the order of RFC 9110 section 13.2.2, then the range.

    `etag` is the opaque tag without quotes, `modified` aware, `size` in bytes (more than 0).
    """
    modified = modified.replace(microsecond=0)
    if (wanted := headers.get("If-Match")) is not None:
        if not _matches(wanted, etag, weak=False):
            return PreconditionFailed()
    elif (unless := _date(headers.get("If-Unmodified-Since"))) is not None and modified > unless:
        return PreconditionFailed()
    if (known := headers.get("If-None-Match")) is not None:
        if _matches(known, etag, weak=True):
            return NotModified()
    elif (since := _date(headers.get("If-Modified-Since"))) is not None and modified <= since:
        return NotModified()
    requested = headers.get("Range")
    if method != "GET" or requested is None or not _range_holds(headers.get("If-Range"), etag, modified):
        return Whole()
    return _range(requested, size)


def _range(header: str, size: int) -> Selection:
    match = _RANGE.fullmatch(header)
    if not match or not (match[1] or match[2]):
        return Whole()  # several ranges, another unit or malformed: ignored, as the RFC allows
    first, last = (_number(text) for text in match.groups())
    if first is None:
        return Part(max(0, size - (last or 0)), size) if last else Unsatisfiable()
    if last is not None and last < first:
        return Whole()
    if first >= size:
        return Unsatisfiable()
    return Part(first, size if last is None else min(last + 1, size))


def _number(text: str) -> int | None:
    return int(text[:5000].lstrip("0")[:20] or 0) if text else None


def _range_holds(condition: str | None, etag: str, modified: datetime) -> bool:
    """Return whether `If-Range` holds (section 13.1.5): a strong comparison of the tag, or exactly the date."""
    if condition is None:
        return True
    if '"' in condition:
        tags = list(_tags(condition))
        return len(tags) == 1 and tags[0] == (False, etag)
    return _date(condition) == modified


def _matches(header: str, etag: str, *, weak: bool) -> bool:
    if header.strip() == "*":
        return True
    return any(tag == etag and (weak or not is_weak) for is_weak, tag in _tags(header))


def _tags(header: str) -> Iterator[tuple[bool, str]]:
    position = 0
    while match := _ETAG.match(header, position):
        yield match[1] is not None, match[2]
        position = match.end()


def _date(header: str | None) -> datetime | None:
    """Read an HTTP date; None when there is none or it is not one, which the RFC says to ignore."""
    return None if header is None else http_date.parse(header, datetime.now(UTC))
