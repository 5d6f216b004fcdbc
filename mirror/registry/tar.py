"""Reads the members of a tar as it comes by, without seeking.

Python's own `tarfile` keeps every member, reads a header of any size into memory, and has had endless loops; here the
tar may be hostile. What the two make of a tar is compared by a property test.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from mirror.common.units import MIB
from mirror.registry.index import MAX_MEMBERS, NotAnArchive

BLOCK = 512

_MAX_EXTENSION = MIB
"""Bytes of a header that has a long name or PAX records at most."""

_MAX_NAMES = 16 * MIB
"""Bytes that all names together have at most."""

_LINK, _SYMLINK = b"1", b"2"
_WITHOUT_DATA = {_LINK, _SYMLINK, b"3", b"4", b"5", b"6"}
_LONG_NAME, _LONG_LINK, _SPARSE = b"L", b"K", b"S"
_PAX, _GLOBAL_PAX = {b"x", b"X"}, b"g"
_OLD_FILE = b"\0"
"""A file, or a directory if its name ends with a slash."""

_RECORD = re.compile(rb"([1-9][0-9]{0,19}) ")


class Kind(Enum):
    """What a member is, as far as that matters here."""

    FILE = auto()
    LINK = auto()
    SYMLINK = auto()
    SPARSE = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Member:
    """One member: `size` bytes from `offset` in the tar are its data; `target` is where a link leads."""

    name: str
    kind: Kind
    offset: int
    size: int
    target: str


class Stream(Protocol):
    """A tar that comes by."""

    @property
    def position(self) -> int:
        """Return how many bytes of it came by."""

    def exactly(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer when it ends before."""

    def skip(self, size: int) -> None:
        """Let the next `size` bytes pass. Raises NotAnArchive when it ends before."""


def members(stream: Stream) -> Iterator[Member]:
    """Yield each member; its data may be taken from `stream` before the next is asked for. Raises NotAnArchive."""
    reader = _Reader(stream)
    while (member := reader.next()) is not None:
        yield member
        stream.skip(member.offset + _padded(member.size) - stream.position)


class _Ahead:
    """What headers before the member's own say about it."""

    KEYS = frozenset({b"path", b"linkpath", b"size"})

    def __init__(self) -> None:
        self._told: dict[bytes, bytes] = {}
        self.is_sparse = False

    def tell(self, key: bytes, value: bytes) -> None:
        """Note what one header says. Raises NotAnArchive when another says something else: readers would disagree."""
        if key in self.KEYS and self._told.setdefault(key, value) != value:
            raise NotAnArchive(f"its tar has a member with two values of {key.decode()}")
        self.is_sparse = self.is_sparse or key.startswith(b"GNU.sparse.")

    def get(self, key: bytes) -> bytes | None:
        """Return what was said of that."""
        return self._told.get(key)


class _Reader:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._headers = 0
        self._names = 0

    def next(self) -> Member | None:
        """Return the next member, whose data comes next; None at the end."""
        ahead = _Ahead()
        while True:
            header = self._stream.exactly(BLOCK)
            if not header.strip(b"\0"):  # a block of zeros marks the end, which may also be missing
                return None
            self._check(header)
            kind = header[156:157]
            if kind == _LONG_NAME:
                ahead.tell(b"path", _text(self._extension(header)))
            elif kind == _LONG_LINK:
                ahead.tell(b"linkpath", _text(self._extension(header)))
            elif kind in _PAX:
                for key, value in _records(self._extension(header)).items():
                    ahead.tell(key, value)
            elif kind == _GLOBAL_PAX:
                if told := _records(self._extension(header)).keys() & _Ahead.KEYS:
                    raise NotAnArchive(f"its tar has a {min(told).decode()} for all members")
            else:
                return self._member(header, kind, ahead)

    def _check(self, header: bytes) -> None:
        if len(header) < BLOCK:
            raise NotAnArchive("its tar is cut off within a header")
        self._headers += 1
        if self._headers > MAX_MEMBERS:
            raise NotAnArchive(f"its tar has more than {MAX_MEMBERS} members")
        if not has_checksum(header):
            raise NotAnArchive("it is no tar" if self._headers == 1 else "its tar has a damaged header")

    def _extension(self, header: bytes) -> bytes:
        size = _number(header[124:136])
        if size > _MAX_EXTENSION:
            raise NotAnArchive(f"its tar has a header of {size} bytes")
        data = self._stream.exactly(_padded(size))
        if len(data) < size:
            raise NotAnArchive("its tar is cut off within a header")
        return data[:size]

    def _member(self, header: bytes, kind: bytes, ahead: _Ahead) -> Member:
        if (name := ahead.get(b"path")) is None:
            name = _text(header[:100])
            if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
                name = prefix + b"/" + name
        if (target := ahead.get(b"linkpath")) is None:
            target = _text(header[157:257])
        self._names += len(name) + len(target)
        if self._names > _MAX_NAMES:
            raise NotAnArchive(f"the names in its tar have more than {_MAX_NAMES} bytes")
        size = _number(header[124:136]) if (told := ahead.get(b"size")) is None else _decimal(told)
        if kind == _SPARSE:
            self._skip_sparse_map(header)
        return Member(
            _decoded(name),
            Kind.OTHER if kind == _OLD_FILE and name.endswith(b"/") else _kind(kind, ahead),
            self._stream.position,
            0 if kind in _WITHOUT_DATA else size,
            _decoded(target),
        )

    def _skip_sparse_map(self, header: bytes) -> None:
        goes_on = header[482]
        while goes_on:
            more = self._stream.exactly(BLOCK)
            self._headers += 1
            if len(more) < BLOCK or self._headers > MAX_MEMBERS:
                raise NotAnArchive("its tar has a sparse member without end")
            goes_on = more[504]


def _kind(kind: bytes, ahead: _Ahead) -> Kind:
    if kind == _LINK:
        return Kind.LINK
    if kind == _SYMLINK:
        return Kind.SYMLINK
    if kind in _WITHOUT_DATA:
        return Kind.OTHER
    return Kind.SPARSE if kind == _SPARSE or ahead.is_sparse else Kind.FILE


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def has_checksum(header: bytes) -> bool:
    """Return whether a block is a header of a tar."""
    without = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(without)
    try:
        told = _number(header[148:156])
    except NotAnArchive:
        return False
    return told in (unsigned, unsigned - 256 * sum(byte > 127 for byte in without))


def _number(field: bytes) -> int:
    """Read a number as tar writes it: octal digits, or binary if it is too large for them. Raises NotAnArchive."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = _text(field).strip(b" ")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise NotAnArchive("its tar has a header with a wrong number")
    return int(digits or b"0", 8)


def _decimal(value: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,19}", value):
        raise NotAnArchive("its tar has a wrong size in a PAX record")
    return int(value)


def _records(data: bytes) -> dict[bytes, bytes]:
    """Read PAX records, each its own length, a space, key=value, a line end. Raises NotAnArchive."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 0:
        head = _RECORD.match(data, at)
        end = at + int(head[1]) if head else 0
        if head is None or not head.end() < end <= len(data) or data[end - 1] != 0x0A:
            raise NotAnArchive("its tar has a wrong PAX record")
        key, equals, value = data[head.end() : end - 1].partition(b"=")
        if not equals or not key:
            raise NotAnArchive("its tar has a wrong PAX record")
        found[key] = value
        at = end
    return found
