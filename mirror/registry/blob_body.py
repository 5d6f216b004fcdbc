"""Gives the bytes of a config or layer to a client: a `Body` whose bytes are inflated in threads, piece by piece."""

import asyncio
import os
from collections.abc import AsyncGenerator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from mirror.common.tasks import finished
from mirror.model.metadata import ImageMetadata
from mirror.registry import blob_reader
from mirror.registry.index import ArchiveIndex, Blob
from mirror.registry.seek_index import DamagedIndex
from mirror.store.base import Cut, StoredImage
from mirror.store.shared_file import SharedFile

THREADS = 2 * (os.cpu_count() or 1) + 2
"""How many pieces are inflated at once: enough for every core, also while some wait for the disk."""


def reading_threads() -> ThreadPoolExecutor:
    """Make the threads that inflate blobs, of all clients of a process."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="blob")


@dataclass(frozen=True, slots=True)
class BlobBody:
    """One blob of a stored image; offsets are those within it. The image is not evicted as long as this exists."""

    image: StoredImage
    index: ArchiveIndex
    blob: Blob
    threads: Executor

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

    async def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes | memoryview, None]:
        """See `Body.pieces`. While one piece is being sent the next one is inflated."""
        loop, nothing = asyncio.get_running_loop(), memoryview(b"")
        reading = blob_reader.read(self.image.file.fd, self.index.seek, self.blob, start, stop)
        following = loop.run_in_executor(self.threads, next, reading, nothing)
        try:
            while piece := await finished(following):
                following = loop.run_in_executor(self.threads, next, reading, nothing)
                start += len(piece)
                if self.image.file.recalled(surely=start >= stop):
                    raise Cut("the image was found bad, or removed by force, while it was sent")
                yield piece
        except DamagedIndex as error:
            raise Cut(str(error)) from error
        finally:
            await asyncio.wait([following])  # it reads from the image, which may be closed next
            if not following.cancelled():
                following.exception()  # marks it as retrieved
