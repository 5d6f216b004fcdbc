"""Between a source that gives pieces as they come and a journal that takes them best in few steps."""

import asyncio
import contextlib
from collections.abc import Callable

from mirror.store.base import Partial

IN_FLIGHT = 4 << 20
"""Bytes received and not yet handed to the journal, at most."""

BATCH = 1 << 20
GATHER = 0.02
"""Bytes that go to the journal without waiting for more, and seconds that fewer may wait; what comes after a silence
goes at once. Each step of progress costs a send for every reader, too."""


class Appender:
    """Hands pieces to the journal in batches: each is what came while the one before was written and digested.

    So a slow line's bytes reach readers at once, and a fast line's in few large steps.
    `moved` is called when the journal has grown; `validator` is kept in it as soon as it has a byte.
    """

    def __init__(self, journal: Partial, validator: str | None, moved: Callable[[], None]) -> None:
        self._journal = journal
        self._validator = validator
        self._noted = False
        self._moved = moved
        self._pending: list[bytes] = []
        self._size = 0
        self._ending = False
        self._room = asyncio.Event()
        self._enough = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    async def put(self, piece: bytes) -> None:
        """Take one piece; waits while more than IN_FLIGHT bytes are pending. Raises what the journal raises."""
        self._pending.append(piece)
        self._size += len(piece)
        if self._work is None or self._work.done():
            await self._finish_work()
            self._work = asyncio.create_task(self._append())
        if self._size >= BATCH:
            self._enough.set()
        while self._size >= IN_FLIGHT and not self._work.done():
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

    def _take(self) -> list[bytes]:
        batch, self._pending, self._size = self._pending, [], 0
        self._room.set()
        return batch

    async def _gather(self) -> None:
        if self._size < BATCH and not self._ending:
            self._enough.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER):
                    await self._enough.wait()
