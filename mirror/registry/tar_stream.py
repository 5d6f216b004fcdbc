"""Passes the tar of an archive by once, uncompressed, within bounds; makes the seek index on the way."""

from collections.abc import Callable, Iterator
from threading import Lock

from mirror.common.units import MIB
from mirror.registry.gzip_file import PIECE, GzipFile, PlainFile, Point
from mirror.registry.index import NotAnArchive, max_inflated
from mirror.registry.inflater import BadGzip
from mirror.registry.seek_index import SPACING, SeekIndexWriter

DENSE, SPARSE = 8, 4
"""Where data are compressed to less than a DENSE-th, points are further apart, SPARSE times as far at most: there a
point is large beside what it stands for, and inflating is quick."""

MAX_GAP = 16 * SPACING
"""Bytes that may come out between two points at most: every read that begins there inflates them. zlib and pigz, which
make all archives that were seen, end a block after 16 MiB at most."""


class Budget:
    """The bytes to which an archive of `size` bytes may inflate; for several threads."""

    def __init__(self, size: int) -> None:
        self._max = self._left = max_inflated(size)
        self._lock = Lock()

    def spend(self, count: int) -> None:
        """Take `count` bytes of it. Raises NotAnArchive when there are not so many left."""
        with self._lock:
            self._left -= count
            if self._left < 0:
                self.exceeded()

    def check(self, count: int) -> None:
        """Raise NotAnArchive if there are surely not `count` bytes left."""
        if count > self._left:
            self.exceeded()

    def exceeded(self) -> None:
        """Refuse the archive."""
        raise NotAnArchive(f"it inflates to more than {self._max} bytes, which is too much for its size")


class IndexedGzip:
    """The gzip file `fd`, read from the beginning on, with points noted by `writer`."""

    def __init__(self, fd: int, writer: SeekIndexWriter) -> None:
        self._file = GzipFile(fd)
        self._writer = writer
        self._last = Point(0, 0, 0)

    @property
    def source(self) -> int:
        """Return how many bytes of the file were read."""
        return self._file.source

    def read(self, into: memoryview) -> int:
        """Write what comes next into `into`; return how many bytes, 0 at the end. Raises NotAnArchive, OSError."""
        try:
            return self._read(into)
        except BadGzip as error:
            raise NotAnArchive(f"its gzip is damaged: {error}") from None

    def _read(self, into: memoryview) -> int:
        passed, read = self._file.position - self._last.position, self._file.source - self._last.source
        if passed < SPACING:
            return self._file.read(into[: SPACING - passed])
        if read < SPACING // DENSE and passed < SPARSE * SPACING:
            return self._file.read(into)
        count = self._file.read(into, to_block_end=True)
        if point := self._file.point:
            self._writer.add(point, self._file.window())
            self._last = point
            return count or self._read(into)
        if passed > MAX_GAP:
            raise NotAnArchive(f"{MAX_GAP // MIB} MiB of it are inflated without a place to begin from")
        return count


class TarStream:
    """The uncompressed tar of an archive, in order. For one thread.

    `passed` is called with the number of the archive's bytes that were read; what it raises ends the pass.
    """

    def __init__(self, file: IndexedGzip | PlainFile, budget: Budget, passed: Callable[[int], None]) -> None:
        self._file = file
        self._budget = budget
        self._passed = passed
        self._ahead = memoryview(b"")
        self.position = 0

    def take(self, size: int) -> Iterator[memoryview]:
        """Yield the next `size` bytes in pieces, each with memory of its own. Raises NotAnArchive when it ends before.

        Raises OSError.
        """
        self._budget.check(size - len(self._ahead))
        while size:
            if not self._ahead and not self._more():
                raise NotAnArchive("its tar is cut off")
            piece = self._next(size)
            size -= len(piece)
            yield piece

    def exactly(self, size: int) -> bytes:
        """See `mirror.registry.tar.Stream`."""
        found = b""
        while len(found) < size and (self._ahead or self._more()):
            found += self._next(size - len(found))
        return found

    def skip(self, size: int) -> None:
        """See `mirror.registry.tar.Stream`."""
        for _ in self.take(size):
            pass

    def _next(self, size: int) -> memoryview:
        piece, self._ahead = self._ahead[:size], self._ahead[size:]
        self.position += len(piece)
        return piece

    def _more(self) -> bool:
        buffer = memoryview(bytearray(PIECE))
        count = self._file.read(buffer)
        self._budget.spend(count)
        self._passed(self._file.source)
        self._ahead = buffer[:count]
        return count > 0
