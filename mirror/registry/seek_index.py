"""Keeps points of a gzip file, from which it can be inflated, in a small file of their own.

The file has the windows of all points, deflated, and then a table with a row for each point. A window is checked when
it is used, and the table when the file is opened, so that a damaged file never leads to wrong bytes.
"""

import bisect
import hashlib
import io
import os
import secrets
import struct
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from mirror.common.files import SUFFIX, sync_directory
from mirror.common.units import MIB
from mirror.registry.gzip_file import GzipFile, Point
from mirror.registry.inflater import WINDOW

NAME = "seek-index"

SPACING = 8 * MIB
"""Bytes that come out between two points, at least. A read inflates about that much in vain at most, or as much more as
takes no longer (see `mirror.registry.tar_stream`)."""

_ROW = struct.Struct("<QQBQI32s")
"""`source`, `bits`, `position` of a point; where its window begins, its deflated length, its SHA-256."""


class DamagedIndex(Exception):
    """The seek index is not what was written; it has to be made again."""


class SeekIndexWriter:
    """Writes the seek index into `directory`: aside first, and in place with `publish`. Blocks; raises OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._aside = directory / f"{NAME}.{secrets.token_hex(8)}{SUFFIX}"
        self._file = io.open(self._aside, "x+b")  # noqa: SIM115, UP020
        self._digest = hashlib.sha256()
        self._length = 0
        self._rows: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)

    def add(self, point: Point, window: bytes) -> None:
        """Note a point."""
        deflated = zlib.compress(window, 1)
        digest = hashlib.sha256(window).digest()
        self._rows.append(_ROW.pack(point.source, point.position, point.bits, self._length, len(deflated), digest))
        self._write(deflated)

    def finish(self) -> "SeekIndex":
        """Write the rest; return what may be read through from now on."""
        for row in self._rows:
            self._write(row)
        self._file.flush()
        return SeekIndex(os.dup(self._file.fileno()), self._rows, self._digest.hexdigest())

    def publish(self) -> None:
        """Give the file its name, durably."""
        os.fsync(self._file.fileno())
        self._aside.rename(self._directory / NAME)
        sync_directory(self._directory)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._length += len(data)


class SeekIndex:
    """The points of a gzip file. It keeps its own file open, and so outlives its name. Any number of threads use it."""

    def __init__(self, fd: int, rows: Sequence[bytes], sha256: str) -> None:
        weakref.finalize(self, os.close, fd)
        self._fd = fd
        self._rows = [_ROW.unpack(row) for row in rows]
        self._positions = [row[1] for row in self._rows]
        self.sha256 = sha256

    @property
    def points(self) -> int:
        """Return how many points there are."""
        return len(self._rows)

    @classmethod
    def load(cls, directory: Path, sha256: str, points: int) -> Self:
        """Open the seek index in `directory`, if its SHA-256 is that. Blocks; raises DamagedIndex, OSError."""
        fd = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC)
        with io.open(fd, "rb") as file:  # noqa: UP020
            found = hashlib.file_digest(file, "sha256").hexdigest()
            begins = os.fstat(file.fileno()).st_size - points * _ROW.size
            if found != sha256 or begins < 0:
                raise DamagedIndex(f"{directory / NAME} is not the file that was written")
            rows = [os.pread(file.fileno(), _ROW.size, begins + number * _ROW.size) for number in range(points)]
            return cls(os.dup(file.fileno()), rows, sha256)

    def open(self, archive: int, position: int) -> GzipFile:
        """Return what comes out of the gzip file `archive` from the last point at or before `position`. Blocks.

        Raises DamagedIndex, OSError.
        """
        number = bisect.bisect_right(self._positions, position) - 1
        if number < 0:
            return GzipFile(archive)
        source, at, bits, begins, length, digest = self._rows[number]
        try:
            window = zlib.decompressobj().decompress(os.pread(self._fd, length, begins), WINDOW)
        except zlib.error:
            window = b""
        if hashlib.sha256(window).digest() != digest:
            raise DamagedIndex("a window of the seek index is not what was written")
        return GzipFile(archive, Point(source, bits, at), window)
