"""Reads the bytes of a blob, or of a range of it, from the archive."""

from collections.abc import Iterable, Iterator

from mirror.registry import wrapping
from mirror.registry.gzip_file import PIECE, GzipFile, PlainFile
from mirror.registry.index import Blob
from mirror.registry.inflater import BadGzip
from mirror.registry.seek_index import DamagedIndex, SeekIndex


def read(archive: int, seek: SeekIndex | None, blob: Blob, start: int, stop: int) -> Iterator[memoryview]:
    """Yield the bytes [start, stop) of `blob` in pieces, each with memory of its own, from the file `archive`.

    Before the first byte, about `mirror.registry.seek_index.SPACING` bytes are inflated in vain at most. It blocks,
    without the GIL while it inflates. Neither archive nor seek index need a name meanwhile. Raises DamagedIndex and
    OSError.
    """
    data = _Data(archive, seek, blob.offset)
    parts: Iterable[bytes | tuple[int, int]] = [(start, stop)]
    if blob.crc32 is not None:
        parts = wrapping.pieces(blob.length, blob.crc32, start, stop)
    piece, filled = memoryview(bytearray(PIECE)), 0
    for part in parts:
        done, size = 0, len(part) if isinstance(part, bytes) else part[1] - part[0]
        while done < size:
            into = piece[filled : filled + size - done]
            if isinstance(part, bytes):
                into[:] = part[done : done + len(into)]
            else:
                data.read(part[0] + done, into)
            done += len(into)
            filled += len(into)
            if filled == len(piece):
                yield piece
                piece, filled = memoryview(bytearray(PIECE)), 0
    if filled:
        yield piece[:filled]


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
