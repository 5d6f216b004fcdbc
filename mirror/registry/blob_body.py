"""Gives the bytes of a config or layer to a client: a `Body` whose bytes are inflated in threads, piece by piece."""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from mirror.common.tasks import finished
from mirror.model.metadata import ImageMetadata
from mirror.registry import blob_reader
from mirror.registry.index import ArchiveIndex, Blob
from mirror.registry.seek_index import DamagedIndex
from mirror.store.base import Cut, StoredImage
from mirror.store.shared_file import SharedFile

THREADS = 2 * (os.cpu_count() or 1) + 2
"""How many pieces are inflated at once: enough for every core, also while some wait for the disk."""


PIECES = 16
MOST = 4
"""How many pieces all clients together are ahead, about, and one of them at most: each turn of a thread has its price,
and a client that is alone pays it less often with more pieces in one turn."""


class BlobThreads:
    """The threads that inflate blobs, for all `clients` of a process."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="blob")
        self.clients = 0

    def close(self) -> None:
        """End the threads. Nothing may be being read any more."""
        self.pool.shutdown()

    @property
    def turn(self) -> int:
        """Return how many pieces a client gets in one turn now."""
        return max(1, min(MOST, PIECES // self.clients))


@dataclass(frozen=True, slots=True)
class BlobBody:
    """One blob of a stored image; offsets are those within it. The image is not evicted as long as this exists."""

    image: StoredImage
    index: ArchiveIndex
    blob: Blob
    threads: BlobThreads

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
        """See `Body.pieces`. While some pieces are being sent the next ones are inflated."""
        loop, threads = asyncio.get_running_loop(), self.threads
        reading = blob_reader.read(self.image.file.fd, self.index.seek, self.blob, start, stop)
        threads.clients += 1
        following = loop.run_in_executor(threads.pool, _take, reading, 1)  # the first byte is waited for
        try:
            while pieces := await finished(following):
                following = loop.run_in_executor(threads.pool, _take, reading, threads.turn)
                start += sum(map(len, pieces))
                if self.image.file.recalled(surely=start >= stop):
                    raise Cut("the image was found bad, or removed by force, while it was sent")
                for piece in pieces:
                    yield piece
        except DamagedIndex as error:
            raise Cut(str(error)) from error
        finally:
            threads.clients -= 1
            await asyncio.wait([following])  # it reads from the image, which may be closed next
            if not following.cancelled():
                following.exception()  # marks it as retrieved


def _take(reading: Iterator[memoryview], count: int) -> Sequence[memoryview]:
    return list(islice(reading, count))
