"""Gives the bytes of a config or layer to a client: a `Readable`, whose bytes threads inflate piece by piece."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from mirror.common.tasks import finished, let_end
from mirror.model.metadata import ImageMetadata
from mirror.registry.blob_reader import BlobReader
from mirror.registry.gzip_file import PIECE
from mirror.registry.index import ArchiveIndex, Blob
from mirror.registry.seek_index import DamagedIndex
from mirror.store.base import Cut, StoredImage, check_good
from mirror.store.shared_file import SharedFile

THREADS = 2 * (os.cpu_count() or 1) + 2
"""How many pieces are inflated at once: enough for every core, also while some wait for the disk."""


def blob_threads() -> ThreadPoolExecutor:
    """Return the threads that inflate blobs, for all clients of a process."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="blob")


@dataclass(frozen=True, slots=True)
class BlobBody:
    """One blob of a stored image; offsets are those within it. The image is not evicted as long as this exists.

    `executor` has the threads that read it. `damaged` is called, in one of them, when that fails.
    """

    image: StoredImage
    index: ArchiveIndex
    blob: Blob
    executor: Executor
    damaged: Callable[[], object] = lambda: None

    @property
    def metadata(self) -> ImageMetadata:
        """See `Body.metadata`: that of the image, which the blob is a part of."""
        return self.image.metadata

    async def available(self, offset: int) -> int:
        """See `Body.available`: none of it is in a file."""
        return self.blob.size

    def file_at(self, offset: int) -> SharedFile | None:
        """See `Body.file_at`."""
        return None

    def reader(self, start: int, stop: int) -> "CheckedReader":
        """See `Readable.reader`."""
        return CheckedReader(self, start, stop)

    async def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes | memoryview, None]:
        """See `Body.pieces`. While a piece is being sent the next one is inflated."""
        loop, reader = asyncio.get_running_loop(), self.reader(start, stop)
        following = loop.run_in_executor(self.executor, _piece, reader)
        try:
            while piece := await finished(following):
                following = loop.run_in_executor(self.executor, _piece, reader)
                reader.check()
                yield piece
        finally:
            await let_end(following)  # it reads from the image, which may be closed next


class CheckedReader:
    """See `BlockingReader`: reads the bytes [start, stop) of `body` as long as its image is good."""

    def __init__(self, body: BlobBody, start: int, stop: int) -> None:
        self._file = body.image.file
        self._reader = BlobReader(self._file.fd, body.index.seek, body.blob, start, stop)
        self._left = stop - start
        self._damaged = body.damaged

    def check(self) -> None:
        """See `BlockingReader.check`."""
        check_good(self._file, surely=not self._left)

    def readinto(self, into: memoryview) -> int:
        """See `BlockingReader.readinto`."""
        try:
            count = self._reader.readinto(into)
        except DamagedIndex as error:
            self._damaged()
            raise Cut(str(error)) from error
        self._left -= count
        self.check()
        return count


def _piece(reader: CheckedReader) -> memoryview:
    piece = memoryview(bytearray(PIECE))
    return piece[: reader.readinto(piece)]
