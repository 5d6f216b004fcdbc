"""Reads the bytes of a blob, or of a range of it, from the archive."""

from collections.abc import Iterable, Iterator

from mirror.registry import wrapping
from mirror.registry.gzip_file import PIECE, GzipFile, PlainFile
from mirror.registry.index import Blob
from mirror.registry.inflater import BadGzip
from mirror.registry.seek_index import DamagedIndex, SeekIndex


class BlobReader:
    """Reads the bytes [start, stop) of `blob` from the file `archive`. For one thread at a time.

    Before the first byte, about `mirror.registry.seek_index.SPACING` bytes are inflated in vain at most. It blocks,
    without the GIL while it inflates. Neither archive nor seek index need a name meanwhile.
    """

    def __init__(self, archive: int, seek: SeekIndex | None, blob: Blob, start: int, stop: int) -> None:
        self._data = _Data(archive, seek, blob.offset)
        parts: Iterable[bytes | tuple[int, int]] = [(start, stop)]
        if blob.crc32 is not None:
            parts = wrapping.pieces(blob.length, blob.crc32, start, stop)
        self._parts = iter(parts)
        self._part: bytes | tuple[int, int] = b""

    def readinto(self, into: memoryview) -> int:
        """Fill `into` with what comes next; return how many bytes, fewer only at the end. Raises DamagedIndex, OSError.

        Those before an error are lost with it.
        """
        filled = 0
        while filled < len(into):
            if not self._part:
                self._part = next(self._parts, b"")
                if not self._part:
                    break
            filled += self._copy(into[filled:])
        return filled

    def _copy(self, into: memoryview) -> int:
        """Write the beginning of the part into `into`, as much as there is room for, and keep the rest."""
        part = self._part
        if isinstance(part, bytes):
            into = into[: len(part)]
            into[:], self._part = part[: len(into)], part[len(into) :]
        else:
            start, stop = part
            into = into[: stop - start]
            self._data.read(start, into)
            start += len(into)
            self._part = (start, stop) if start < stop else b""
        return len(into)


def read(archive: int, seek: SeekIndex | None, blob: Blob, start: int, stop: int) -> Iterator[memoryview]:
    """Yield what a `BlobReader` reads in pieces, each with memory of its own. Raises as it does."""
    reader = BlobReader(archive, seek, blob, start, stop)
    while True:
        piece = memoryview(bytearray(PIECE))
        if not (count := reader.readinto(piece)):
            return
        yield piece[:count]


class _Data:
    """The uncompressed archive from `offset` on, to be read forwards."""

    def __init__(self, archive: int, seek: SeekIndex | None, offset: int) -> None:
        self._archive = archive
        self._seek = seek
        self._offset = offset
        self._file: PlainFile | GzipFile | None = None

    def read(self, position: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `position`. Raises DamagedIndex, OSError."""
        position += self._offset
        file = self._file = self._file or self._open(position)
        while skipped := position - file.position:
            self._fill(file, memoryview(bytearray(min(skipped, PIECE))))
        self._fill(file, into)

    def _open(self, position: int) -> PlainFile | GzipFile:
        if self._seek is None:
            return PlainFile(self._archive, position)
        return self._seek.open(self._archive, position)

    @staticmethod
    def _fill(file: PlainFile | GzipFile, into: memoryview) -> None:
        while into:
            try:
                count = file.read(into)
            except BadGzip as error:
                raise DamagedIndex(f"the archive is not what was indexed: {error}") from None
            if not count:
                raise DamagedIndex("the archive ends before its index does")
            into = into[count:]
