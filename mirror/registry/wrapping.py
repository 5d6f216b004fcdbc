"""Wraps plain bytes as gzip without compressing them, so that the size and every range follow by arithmetic.

A plain layer is served like this, because some clients take no other than gzip. Its digest is pinned by clients, so
nothing here ever changes: a header of ten bytes, stored blocks of 65535 bytes each, the last one marked and shorter
(an empty layer is one block of no bytes), the CRC-32, and the length modulo 2^32.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator

HEADER = bytes.fromhex("1f8b08000000000000ff")
BLOCK = 65535
"""Plain bytes in a block."""

BLOCK_HEADER = 5
TRAILER = 8
_FULL = b"\x00\xff\xff\x00\x00"


def wrapped_size(length: int) -> int:
    """Return how many bytes `length` plain bytes have when they are wrapped."""
    blocks = max(1, -(-length // BLOCK))
    return len(HEADER) + BLOCK_HEADER * blocks + length + TRAILER


def last_block_header(length: int) -> bytes:
    """Return the header of the last block, of `length` bytes."""
    return struct.pack("<BHH", 1, length, length ^ 0xFFFF)


def trailer(crc32: int, length: int) -> bytes:
    """Return what comes after the last block."""
    return struct.pack("<II", crc32, length & 0xFFFFFFFF)


class WrappingDigest:
    """The digest that plain bytes have when they are wrapped; `length` of them must be given to `update`."""

    def __init__(self, length: int) -> None:
        self._sha256 = hashlib.sha256(HEADER)
        self._length = length
        self._done = 0
        self.crc32 = 0
        if not length:
            self._sha256.update(last_block_header(0))

    def update(self, data: memoryview) -> None:
        """Take the next plain bytes."""
        self.crc32 = zlib.crc32(data, self.crc32)
        while data:
            within = self._done % BLOCK
            if not within:
                left = self._length - self._done
                self._sha256.update(_FULL if left > BLOCK else last_block_header(left))
            part = data[: BLOCK - within]
            self._sha256.update(part)
            self._done += len(part)
            data = data[len(part) :]

    def hexdigest(self) -> str:
        """Return it as 64 hexadecimal digits, after the last byte."""
        whole = self._sha256.copy()
        whole.update(trailer(self.crc32, self._length))
        return whole.hexdigest()


def pieces(length: int, crc32: int, start: int, stop: int) -> Iterator[bytes | tuple[int, int]]:
    """Yield what the wrapped bytes [start, stop) are made of: bytes of the wrapping, or a range of plain bytes."""
    for begin, part in _parts(length, crc32, start):
        if begin >= stop:
            return
        size = len(part) if isinstance(part, bytes) else part[1] - part[0]
        low, high = max(start - begin, 0), min(stop - begin, size)
        if low < high:
            yield part[low:high] if isinstance(part, bytes) else (part[0] + low, part[0] + high)


def _parts(length: int, crc32: int, start: int) -> Iterator[tuple[int, bytes | tuple[int, int]]]:
    """Yield all parts, each with where it begins, from one that begins at or before `start`."""
    yield 0, HEADER
    number = max(0, start - len(HEADER)) // (BLOCK_HEADER + BLOCK)
    last = max(0, -(-length // BLOCK) - 1)
    for block in range(min(number, last), last + 1):
        begin = len(HEADER) + block * (BLOCK_HEADER + BLOCK)
        low, high = block * BLOCK, min(length, (block + 1) * BLOCK)
        yield begin, _FULL if block < last else last_block_header(high - low)
        yield begin + BLOCK_HEADER, (low, high)
    yield wrapped_size(length) - TRAILER, trailer(crc32, length)
