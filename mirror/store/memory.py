"""A journal in memory that keeps only the latest bytes: for an image that cannot be stored but is wanted all the same.

Clients read along while it moves. It waits for its readers, so that a fast line does not outrun them; but a reader may
keep the others waiting for only READER_GRACE seconds in all, then it falls behind. Nothing is stored; hash and size are
verified as always before the last bytes are given out.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence

from mirror.model.metadata import ImageMetadata
from mirror.store.base import FellBehind
from mirror.store.digest import check

SIZE = 4 << 20
"""Bytes kept; more than a `JournalWriter` hands over at once."""

GATHER = 2.0
"""Seconds for which at least the first bytes stay, so that clients that come together share one transfer."""

READER_GRACE = 5.0
"""Seconds, in all, for which one reader may keep the others waiting."""

LONELY = 10.0
"""Seconds without any reader after which it is assumed that no client wants the rest."""

SLICE = 16 << 10
"""Bytes given to a reader at once, at most: they are in memory twice until they are sent."""


class Abandoned(Exception):
    """No client is reading any more."""


class MemoryWindow:
    """A `Partial` that goes on after the `position` bytes whose digest is `digest`. `start` is the first byte kept."""

    file = None
    ours = True
    published = False

    def __init__(self, metadata: ImageMetadata, position: int = 0, digest: "hashlib._Hash | None" = None) -> None:
        self.start = self.position = position
        self.validator: str | None = None
        self._metadata = metadata
        self._digest = digest or hashlib.sha256()
        self._ring = bytearray(min(SIZE, metadata.size))  # the byte at offset o is at o modulo its length
        self._readers: set[MemoryReader] = set()
        self._stirred = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()

    @contextlib.asynccontextmanager
    async def reader(self, offset: int) -> AsyncIterator["MemoryReader"]:
        """See `Partial.reader`."""
        reader = MemoryReader(self, offset)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)
            self._stirred.set()

    def read(self, start: int, stop: int) -> bytes:
        """Copy the bytes [start, stop), or the first of them. Raises FellBehind when they are gone."""
        if start < self.start:
            raise FellBehind("too slow for an image that is passed through and not stored")
        begin = start % len(self._ring)
        return bytes(self._ring[begin : begin + min(stop - start, SLICE)])

    def stir(self) -> None:
        """Note that a reader moved."""
        self._stirred.set()

    async def recover(self) -> bool:
        """See `Partial.recover`: an earlier process left nothing."""
        return False

    async def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See `Partial.append`; waits for the readers. Raises Abandoned."""
        await self._let_go(self.position + sum(map(len, pieces)) - len(self._ring))
        await asyncio.get_running_loop().run_in_executor(None, self._write, pieces)
        self.position += sum(map(len, pieces))

    def digest(self) -> "hashlib._Hash":
        """See `Partial.digest`."""
        return self._digest.copy()

    async def remember(self, validator: str | None) -> None:
        """See `Partial.remember`: for as long as the window lives."""
        self.validator = validator

    async def publish(self) -> None:
        """See `Partial.publish`: it verifies, and stores nothing."""
        check(self._metadata, self.position, self._digest)

    async def quarantine(self) -> None:
        """See `Partial.quarantine`: nothing is kept."""

    async def discard(self) -> None:
        """See `Partial.discard`: nothing is kept."""

    async def close(self) -> None:
        """See `Partial.close`: the memory goes with the last reader."""

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        position = self.position
        for whole in pieces:
            self._digest.update(whole)
            piece = memoryview(whole)
            while piece:
                begin = position % len(self._ring)
                part = piece[: len(self._ring) - begin]
                self._ring[begin : begin + len(part)] = part
                position += len(part)
                piece = piece[len(part) :]

    async def _let_go(self, start: int) -> None:
        """Drop the bytes before `start`, once the readers have taken them or had the time to."""
        if start <= self.start:
            return
        while self._clock() < self._began + GATHER:
            await self._until(self._began + GATHER)
        while behind := [reader for reader in self._readers if reader.position < start and reader.patience > 0]:
            starving = any(reader.position == self.position for reader in self._readers)
            began = self._clock()
            await self._until(began + min(reader.patience for reader in behind) if starving else None)
            if starving:
                for reader in behind:
                    reader.patience -= self._clock() - began
        if not self._readers:
            await self._until(self._clock() + LONELY)
            if not self._readers:
                raise Abandoned("nobody reads what is passed through")
        self.start = start

    async def _until(self, deadline: float | None) -> None:
        """Wait until that time, or until a reader moves."""
        self._stirred.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._stirred.wait()


class MemoryReader:
    """A client that reads along: its position, and for how many more seconds it may keep others waiting."""

    def __init__(self, window: MemoryWindow, position: int) -> None:
        self.position = position
        self.patience = READER_GRACE
        self._window = window
        window.stir()

    async def take(self, stop: int) -> bytes:
        """See `mirror.store.base.Reader.take`. Raises FellBehind."""
        piece = self._window.read(self.position, stop)
        self.position += len(piece)
        self._window.stir()
        return piece
