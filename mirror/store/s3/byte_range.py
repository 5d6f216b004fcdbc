"""Lets AWS's libraries sign and send a range of bytes as if it were a file, without copying it first.

So a part that is being uploaded takes no memory of its own.
"""

import io
import os
from collections.abc import Callable
from typing import Any

ReadInto = Callable[[int, memoryview], int]
"""Reads bytes from an offset into a buffer, and returns how many. Raises OSError."""


class Span(io.RawIOBase):
    """The bytes [start, stop) of what `read_into` reads."""

    def __init__(self, read_into: ReadInto, start: int, stop: int) -> None:
        self.size = stop - start
        self._read_into = read_into
        self._start = start
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes from the start of the span."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to another position within the span."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read the bytes that follow. Raises OSError when they are not there any more."""
        into = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        if not into:
            return 0
        count = self._read_into(self._start + self._position, into)
        if not count:
            raise OSError(f"the bytes end before {self._start + self.size}")
        self._position += count
        return count
