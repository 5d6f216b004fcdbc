"""Inflates gzip of one or more members: what is fed to it, or a file from its beginning or from a point in it.

A plain file is read in the same way.
"""

import os
from dataclasses import dataclass

from mirror.registry.inflater import GZIP, RAW, BadGzip, Inflater

PIECE = 256 << 10
"""Bytes at a time: what was inflated is hashed or sent while a core's cache still has it."""

_BARREN = 1 << 20
"""Bytes of a file that may inflate to nothing at most: in real ones each block and member has something in it."""

_TRAILER = 8
"""Bytes of a member's check and length, which zlib leaves alone when it began within the member."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place from which a gzip file can be inflated.

    The byte at `source` is read next, the byte at `position` comes out next. `bits` bits of the byte before `source`
    belong to what follows.
    """

    source: int
    bits: int
    position: int


class Gunzip:
    """Inflates gzip that is fed to it. For one thread at a time.

    After `feed`, `inflate` is called until it returns 0.
    """

    def __init__(self, *, within: bool = False) -> None:
        self._inflater = Inflater(RAW if within else GZIP)
        self._trailer = _TRAILER if within else 0
        self._first = True
        self.has_trailing = False
        """Bytes that are no gzip come after the last member. They are left alone, as gzip does."""

    @property
    def is_whole(self) -> bool:
        """Return whether it may end here."""
        return self.has_trailing or (self._inflater.ended and not self._trailer)

    @property
    def unread(self) -> int:
        """Return how many bytes of what was fed are not inflated yet."""
        return self._inflater.unread

    @property
    def bits_at_point(self) -> int | None:
        """Return how many bits of the last byte belong to what follows; None when nothing can begin here."""
        inflater = self._inflater
        return inflater.bits if inflater.at_block_end and not inflater.ended and not self.has_trailing else None

    def begin(self, bits: int, value: int, window: bytes) -> None:
        """Begin within a member: the last `bits` bits of the byte `value` come first, `window` came before."""
        self._inflater.begin(bits, value >> (8 - bits), window)

    def window(self) -> bytes:
        """Return the last bytes that came out, as many as are needed to begin here."""
        return self._inflater.window()

    def feed(self, data: memoryview) -> None:
        """Give it the next bytes, which must be writable and stay as they are until `inflate` returns 0."""
        self._inflater.feed(data)

    def inflate(self, into: memoryview, *, to_block_end: bool = False) -> int:
        """Write what comes out into `into`; return how many bytes, 0 when it needs more. Raises BadGzip.

        With `to_block_end` it stops at the next point, and then 0 may mean that.
        """
        inflater = self._inflater
        while inflater.unread and not self.has_trailing:
            if inflater.ended and not self._next_member():
                break
            try:
                if count := inflater.inflate(into, to_block_end=to_block_end):
                    return count
            except BadGzip:
                if self._first or inflater.has_begun:
                    raise
                self.has_trailing = True
            if to_block_end and self.bits_at_point is not None:
                break
        return 0

    def _next_member(self) -> bool:
        skipped = min(self._trailer, self._inflater.unread)
        self._inflater.skip(skipped)
        self._trailer -= skipped
        if not self._inflater.unread:
            return False
        self._inflater.restart()
        self._first = False
        return True


class GzipFile:
    """What comes out of the gzip file `fd`, from the beginning or from `point`. For one thread at a time."""

    def __init__(self, fd: int, point: Point | None = None, window: bytes = b"") -> None:
        self._fd = fd
        self._buffer = memoryview(bytearray(PIECE))
        self._gunzip = Gunzip(within=point is not None)
        self.source = point.source if point else 0
        """How many bytes of the file were read."""
        self.position = point.position if point else 0
        """How many bytes came out before the next one."""
        if point:
            value = os.pread(fd, 1, point.source - 1)[0] if point.bits else 0
            self._gunzip.begin(point.bits, value, window)

    @property
    def point(self) -> Point | None:
        """Return the point that it stands at; None when nothing can begin here."""
        bits = self._gunzip.bits_at_point
        return None if bits is None else Point(self.source - self._gunzip.unread, bits, self.position)

    def window(self) -> bytes:
        """Return what has to be known besides `point`."""
        return self._gunzip.window()

    def read(self, into: memoryview, *, to_block_end: bool = False) -> int:
        """Write what comes next into `into`; return how many bytes, 0 at the end. Raises BadGzip, OSError.

        With `to_block_end` it stops at the next point, and then 0 may mean that.
        """
        began = self.source
        while not self._gunzip.has_trailing:
            if self.source - began > _BARREN:
                raise BadGzip(f"{_BARREN} bytes of it have nothing in them")
            if not self._gunzip.unread and not self._more():
                break
            count = self._gunzip.inflate(into, to_block_end=to_block_end)
            self.position += count
            if count or (to_block_end and self.point):
                return count
        return 0

    def _more(self) -> bool:
        count = os.preadv(self._fd, [self._buffer], self.source)
        if not count and not self._gunzip.is_whole:
            raise BadGzip("it is cut off")
        self.source += count
        self._gunzip.feed(self._buffer[:count])
        return count > 0


class PlainFile:
    """The file `fd` from `position` on; see `GzipFile`."""

    def __init__(self, fd: int, position: int = 0) -> None:
        self._fd = fd
        self.position = position

    @property
    def source(self) -> int:
        """Return up to where the file was read."""
        return self.position

    def read(self, into: memoryview) -> int:
        """Write what comes next into `into`; return how many bytes, 0 at the end. Raises OSError."""
        count = os.preadv(self._fd, [into], self.position)
        self.position += count
        return count
