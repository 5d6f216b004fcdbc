"""A journal that leaves nothing on the disk: its latest parts are in memory, the earlier ones in the bucket.

It cannot get far ahead of the bucket: a part stays in memory until the bucket has it, and there is memory for only a
few. Readers near the position take bytes from memory; those further behind read the parts from the bucket, and after
publishing, the image.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import mmap
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence

from mirror.model.metadata import ImageMetadata
from mirror.store.base import Cut
from mirror.store.digest import check
from mirror.store.s3 import parts
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.coordinator import Coordinator, Readable
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.object_reader import PIECE
from mirror.store.s3.objects import ObjectGone

log = logging.getLogger(__name__)

KEPT = 3
"""Parts in memory, at most: one that grows, and two that are being uploaded."""


class PartsJournal:
    """A `Partial`, with the `coordinator` of its fill. `sure` verifies the image's object as it was stored."""

    file = None
    ours = True
    published = False

    def __init__(
        self,
        bucket: Bucket,
        metadata: ImageMetadata,
        coordinator: Callable[[ImageMetadata, Readable], Coordinator],
        sure: Callable[[], Awaitable[None]],
    ) -> None:
        self.coordinator = coordinator(metadata, self)
        self.position = 0
        self.validator: str | None = None
        self.part_size = parts.part_size(metadata.size)
        self.named = False
        self.bucket = bucket
        self.metadata = metadata
        self.sure = sure
        self._digest = hashlib.sha256()
        self._parts: dict[int, mmap.mmap] = {}  # not on the heap, which would keep the memory that they took

    async def recover(self) -> bool:
        """See `Partial.recover`: what is in the bucket arrives through the source."""
        return False

    async def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See `Partial.append`; waits until the bucket has taken earlier parts."""
        loop = asyncio.get_running_loop()
        for whole in pieces:
            piece = memoryview(whole)
            while piece:
                number, first = divmod(self.position, self.part_size)
                if first == 0:
                    await self._make_room(number)
                fitting = piece[: self.part_size - first]
                await loop.run_in_executor(None, self._write, number, first, fitting)
                self.position += len(fitting)
                piece = piece[len(fitting) :]
        self.coordinator.moved()

    def digest(self) -> "hashlib._Hash":
        """See `Partial.digest`."""
        return self._digest.copy()

    async def remember(self, validator: str | None) -> None:
        """See `Partial.remember`: the lease tells the validator to the mirror that goes on."""
        self.validator = validator

    async def publish(self) -> None:
        """See `Partial.publish`. Verified bytes are given out even if the bucket does not take them."""
        check(self.metadata, self.position, self._digest)
        settling = self.coordinator.settle()
        settling.add_done_callback(self._settled)
        await asyncio.wait([settling], timeout=self.bucket.timings.publishing)

    async def quarantine(self) -> None:
        """See `Partial.quarantine`: wrong parts stay in the bucket for a day, and no mirror takes them over."""
        await self.coordinator.wrong()

    async def discard(self) -> None:
        """See `Partial.discard`."""
        await self.coordinator.wrong()

    async def close(self) -> None:
        """See `Partial.close`."""
        await self.coordinator.close()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """See `mirror.store.s3.coordinator.Readable`."""
        number, first = divmod(offset, self.part_size)
        if (part := self._parts.get(number)) is None:
            raise OSError(errno.ESTALE, "the bytes have left memory")
        count = min(len(buffer), self.part_size - first)
        buffer[:count] = memoryview(part)[first : first + count]
        return count

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop), which are in one part that is in memory."""
        number, first = divmod(start, self.part_size)
        return self._parts[number][first : first + stop - start]

    def rest(self, start: int) -> Iterator[bytes]:
        """Return all bytes from `start` on, which are in memory."""
        for number, first, last in parts.spans(start, self.metadata.size, self.part_size):
            yield self._parts[number][first:last]

    def near(self, offset: int) -> bool:
        """Return whether the byte at `offset` is in memory."""
        return offset // self.part_size in self._parts and offset < self.position

    @contextlib.asynccontextmanager
    async def reader(self, offset: int) -> AsyncIterator["PartsReader"]:
        """Read along from `offset`."""
        reader = PartsReader(self, offset)
        try:
            yield reader
        finally:
            await reader.leave()

    async def behind(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, stop), or the first of them, from the bucket. Raises ObjectGone, BucketFailed."""
        number, first, last = next(parts.spans(start, stop, self.part_size))
        if not self.named and (fill := self.coordinator.writer(number)):
            try:
                async for piece in self.bucket.read(parts.name(self.metadata.hash, fill, number), first, last):
                    start += len(piece)
                    yield piece
            except ObjectGone:
                log.debug("the parts of %s have gone: whoever fetched it is done", self.metadata.hash)
            else:
                return
        async for piece in self.bucket.read(f"images/{self.metadata.hash}", start, stop):
            yield piece

    def _settled(self, settling: "asyncio.Task[bool]") -> None:
        self.named = not settling.cancelled() and settling.result()

    def _write(self, number: int, first: int, piece: memoryview) -> None:
        self._parts[number][first : first + len(piece)] = piece
        self._digest.update(piece)

    async def _make_room(self, number: int) -> None:
        """Provide memory for part `number`: new, or that of an earlier part which is in the bucket."""
        if len(self._parts) < KEPT:
            self._parts[number] = mmap.mmap(-1, min(self.part_size, self.metadata.size))
            return
        oldest = min(self._parts)
        if not await self.coordinator.landed(oldest, self.bucket.timings.landing):
            raise OSError(errno.EIO, "the bucket takes nothing")
        self._parts[number] = self._parts.pop(oldest)


class PartsReader:
    """A client that reads along from `position` on."""

    def __init__(self, journal: PartsJournal, position: int) -> None:
        self.position = position
        self._journal = journal
        self._borrowed = False
        self._digest = hashlib.sha256() if position == 0 else None
        self._stream: AsyncGenerator[bytes, None] | None = None

    async def take(self, stop: int) -> bytes:
        """Take the next bytes, at least one and none beyond `stop`; they must be there already. Raises Cut."""
        journal, size = self._journal, self._journal.metadata.size
        if self._borrowed and stop == size and self.position < (last := size - PIECE):
            stop = last  # its last bytes wait until the bytes that it read from the bucket are known to be right
        if self._borrowed and stop == size and not self._had_right():
            piece = await self._borrow(stop)
        elif journal.near(self.position):
            await self.leave()
            end = min(stop, self.position + PIECE, (self.position // journal.part_size + 1) * journal.part_size)
            piece = journal.read(self.position, end)
        else:
            piece = await self._borrow(stop)
        self.position += len(piece)
        if self._digest is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._digest.update, piece)
        return piece

    def _had_right(self) -> bool:
        """Return whether what it was given plus the rest, in memory, is the image, whatever the bucket has."""
        if self._digest is None or not self._journal.near(self.position):
            return False
        digest = self._digest.copy()
        for piece in self._journal.rest(self.position):
            digest.update(piece)
        return digest.hexdigest() == self._journal.metadata.hash

    async def leave(self) -> None:
        """Close a connection to the bucket."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.aclose()

    async def _borrow(self, stop: int) -> bytes:
        """Read from the bucket what is no longer in memory; its last bytes wait until they are known to be right."""
        journal = self._journal
        self._borrowed = True
        last = max(0, journal.metadata.size - PIECE)
        if self.position < last:
            stop = min(stop, last)
        for _ in range(3):
            try:
                if stop > last:
                    await journal.sure()
                if self._stream is None:
                    self._stream = journal.behind(self.position, stop)
                return await anext(self._stream)
            except (StopAsyncIteration, ObjectGone):  # it ended; or the image is named and the parts are removed
                await self.leave()
            except BucketFailed as error:
                raise Cut(f"what has left memory cannot be had: {error}") from error
        raise Cut("what has left memory is not in the bucket any more")
