"""Writes what a source gives into a journal: pieces arrive in any size, and are best written in few steps."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable

from mirror.model.source import Broken, Changed, Stream
from mirror.store.base import Corrupt, Partial
from mirror.store.memory import MemoryWindow

IN_FLIGHT = 4 << 20
IN_FLIGHT_TO_MEMORY = 1 << 20
"""Bytes received and not yet handed to the journal, at most: to any, and to one in memory, which waits for clients."""

BATCH = 1 << 20
GATHER = 0.02
"""Bytes that go to the journal without waiting for more, and seconds that fewer may wait; the first bytes after a pause
go at once. Few steps, because each of them also costs a send for every reader."""


async def write(stream: Stream, journal: Partial, size: int, moved: Callable[[], None]) -> None:
    """Append what the stream gives to the journal of an image of `size` bytes, until the stream ends.

    If the stream begins before the journal's end, what the journal already has is skipped. Raises Broken, Changed,
    Corrupt (more bytes than there should be), and whatever the journal raises.
    """
    restarted = stream.offset < journal.position
    digest = journal.digest().hexdigest()
    pieces = _skip(stream.pieces, journal.position, digest) if restarted else stream.pieces
    received = journal.position
    writer = JournalWriter(journal, stream.validator, moved)
    try:
        async for piece in pieces:
            received += len(piece)
            if received > size:
                raise Corrupt(f"{size} bytes", "more")
            await writer.put(piece)
    except Broken as cut:
        # all that work without one further byte: this must not go on for long
        if restarted and received == journal.position:
            raise Broken(str(cut), definitive_after=4) from cut
        raise
    finally:
        await writer.finish()


async def _skip(
    pieces: AsyncIterator[bytes | memoryview], count: int, digest: str
) -> AsyncIterator[bytes | memoryview]:
    """Skip the first `count` bytes, which must have that SHA-256. Raises Changed when they have another.

    Raises Broken when the stream ends before that.
    """
    skipped = hashlib.sha256()
    async for piece in pieces:
        head, tail = piece[:count], piece[count:]
        if head:
            skipped.update(head)
            count -= len(head)
            if not count and skipped.hexdigest() != digest:
                raise Changed("upstream starts over with other bytes than before", ours_is_wrong=True)
        if tail:
            yield tail
    if count:
        raise Broken("what came in the image's place ends before what we hold")


class JournalWriter:
    """Hands pieces to the journal in batches: each is what came while the one before was written and digested.

    So bytes of a slow line reach readers at once, and bytes of a fast line in a few large steps. `moved` is called when
    the journal has grown; `validator` is kept in the journal as soon as it has a byte.
    """

    def __init__(self, journal: Partial, validator: str | None, moved: Callable[[], None]) -> None:
        self._journal = journal
        self._validator = validator
        self._noted = False
        self._moved = moved
        self._most = IN_FLIGHT_TO_MEMORY if isinstance(journal, MemoryWindow) else IN_FLIGHT
        self._pending: list[bytes | memoryview] = []
        self._size = 0
        self._ending = False
        self._room = asyncio.Event()
        self._enough = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    async def put(self, piece: bytes | memoryview) -> None:
        """Take one piece; wait while more than IN_FLIGHT bytes are pending. Raises what the journal raises."""
        self._pending.append(piece)
        self._size += len(piece)
        if self._work is None or self._work.done():
            await self._finish_work()
            self._work = asyncio.create_task(self._append())
        if self._size >= BATCH:
            self._enough.set()
        while self._size >= self._most and not self._work.done():
            self._room.clear()
            await self._room.wait()

    async def finish(self) -> None:
        """Wait until all that was taken is in the journal. Raises what the journal raises."""
        self._ending = True
        self._enough.set()
        await self._finish_work()

    async def _finish_work(self) -> None:
        if self._work is not None:
            await self._work

    async def _append(self) -> None:
        try:
            while self._pending:
                await self._journal.append(self._take())
                self._moved()
                if not self._noted:
                    self._noted = True
                    await self._journal.remember(self._validator)
                await self._gather()
        finally:
            self._room.set()

    def _take(self) -> list[bytes | memoryview]:
        batch, self._pending, self._size = self._pending, [], 0
        self._room.set()
        return batch

    async def _gather(self) -> None:
        if self._size < BATCH and not self._ending:
            self._enough.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER):
                    await self._enough.wait()
