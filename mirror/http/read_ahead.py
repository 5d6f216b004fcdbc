"""Lets a thread make the next piece of a body while the one before it is sent."""

import asyncio
from collections import deque
from concurrent.futures import Executor
from contextlib import suppress
from typing import Self

from mirror.common.tasks import finished
from mirror.store.base import BlockingReader

MEMORY = 16 << 20
"""Bytes of the pieces of all clients together, as long as LEAST allows."""

LEAST, MOST = 128 << 10, 1 << 20
"""Bytes of a piece: each change between threads has its price, and a core's cache should still have what is sent."""

PIECES = 2
"""How many pieces a client has: one is made while the other is sent."""

TURN = 8
"""The most pieces that are made for one client before others get the thread."""


def piece_size(clients: int, total: int) -> int:
    """Return how many bytes a piece has for one of so many clients, which is sent `total` bytes."""
    return max(1, min(total, MOST, max(LEAST, MEMORY // PIECES // clients)))


class ReadAhead:
    """What `reader` makes in threads of `executor`, in pieces of `size` bytes. For one task, as a context manager.

    The thread goes on as long as a piece is free, so that a client that keeps up costs few changes between threads.
    """

    def __init__(self, reader: BlockingReader, executor: Executor, size: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = reader
        self._executor = executor
        self._free = deque(memoryview(bytearray(size)) for _ in range(PIECES))
        self._made: deque[tuple[memoryview, int]] = deque()
        self._sent: memoryview | None = None
        self._came = asyncio.Event()
        self._ended = False
        self._turn: asyncio.Future[None] = self._start()

    async def next(self) -> memoryview:
        """Return the next piece, empty at the end. The one before is made anew from now on. Raises Cut, OSError."""
        if self._sent is not None:
            self._free.append(self._sent)
            self._sent = None
        self._go_on()
        while not self._made:
            self._came.clear()
            await self._came.wait()
            self._go_on()
        self._sent, count = self._made.popleft()
        return self._sent[:count]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait until no thread uses the reader any more."""
        self._ended = True
        with suppress(Exception):  # it was raised by `next`, or nobody wants to know
            await finished(self._turn)

    def _go_on(self) -> None:
        """Have more made, if there is room and nobody is at it. Raises what ended the last turn, after its pieces."""
        if not self._turn.done():
            return
        if not self._made:
            self._turn.result()
        if self._free and not self._turn.exception():
            self._turn = self._start()

    def _start(self) -> asyncio.Future[None]:
        turn = self._loop.run_in_executor(self._executor, self._make)
        turn.add_done_callback(lambda _: self._came.set())
        return turn

    def _make(self) -> None:
        """Make pieces, in a thread, until none is free, or it is the turn of others."""
        for _ in range(TURN):
            if self._ended or not self._free:
                return
            piece = self._free.popleft()
            count = self._reader.readinto(piece)
            self._made.append((piece, count))
            self._loop.call_soon_threadsafe(self._came.set)
            if not count:
                return
