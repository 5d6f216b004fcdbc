"""Reads consecutive ranges over several connections at once, and hands their bytes on in order.

Bytes that came before their turn wait in a window of bounded size. A range whose connection breaks is asked for again
from where it stopped, and a range that holds all others up is asked for again over another connection. No byte is asked
for twice, except what was on its way over a connection that was given up.
"""

import asyncio
import statistics
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from mirror.model.source import Broken

ATTEMPTS = 3
"""How often in a row a range may be asked for without getting a byte."""

SLOW = 1.0
"""The least seconds that a connection is idle, because of the range whose turn it is, before that is asked for again;
it is also idle for as long as a range usually takes."""

OpenRange = Callable[[int, int], AbstractAsyncContextManager[AsyncIterator[bytes | memoryview]]]
"""Asks for the bytes [start, stop), and returns when the answer is known to be right.

Raises Broken when the range may be asked for again, Refused when there are too many connections, and anything else when
it cannot be had.
"""


class Refused(Broken):
    """The server answers fewer requests at a time than there are."""


class _Range:
    """The bytes [start, stop): as far as they are `received` and `given` on. `pieces` are those in between."""

    def __init__(self, start: int, stop: int) -> None:
        self.start = self.received = self.given = start
        self.stop = stop
        self.pieces: deque[bytes | memoryview] = deque()
        self.answered = False
        self.refused = False
        self.replaced = False
        self.failures = 0
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self.room = asyncio.Event()

    @property
    def wanting(self) -> bool:
        """Whether it has to be asked for."""
        return self.task is None and self.received < self.stop


class RangesInOrder:
    """The bytes [start, stop), in ranges of `size` bytes, of which at most `ahead` are received or wait for their turn.

    At most `most` requests are under way. `refused` is called with what is left of `most` when the server refuses a
    request. Reading begins at once, with one request until that is answered; `close` ends it.
    """

    def __init__(
        self,
        open_range: OpenRange,
        start: int,
        stop: int,
        *,
        size: int,
        ahead: int,
        most: int,
        refused: Callable[[int, Refused], None] = lambda _left, _error: None,
    ) -> None:
        self.start = start
        self._open = open_range
        self._next, self._stop = start, stop
        self._size = size
        self._ahead = ahead
        self._most = most
        self._refused = refused
        self._tasks: set[asyncio.Task[None]] = set()
        self._ranges: deque[_Range] = deque()
        self._moved = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._tick: asyncio.TimerHandle | None = None
        self._took: deque[float] = deque([SLOW], maxlen=8)
        self._idle_since: float | None = None
        self._proved = False
        self._undivided = False
        self._closed = False
        self._schedule()

    @property
    def most(self) -> int:
        """How many requests may be under way."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        self._most = most
        self._schedule()

    def undivide(self) -> None:
        """Use one request for all that was not asked for yet, when the others have ended."""
        self._most, self._undivided = 1, True

    async def answered(self) -> Exception | None:
        """Wait for the answer to the first range; return why it cannot be had, or None when it is on its way."""
        first = self._ranges[0]
        while not first.answered and first.error is None:
            await self._wait()
        return None if first.answered else first.error

    async def pieces(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield the bytes in order. Raises why the range whose turn it is cannot be had."""
        while self._ranges or self._next < self._stop:
            if not self._ranges:  # the one connection that there may be is just ending
                await self._wait()
                continue
            first = self._ranges[0]
            while first.given < first.stop:
                if first.pieces:
                    piece = first.pieces.popleft()
                    first.given += len(piece)
                    first.room.set()
                    yield piece
                elif first.error is not None:
                    raise first.error
                else:
                    await self._wait()
                    await self._replace_if_slow(first)
            self._ranges.popleft()
            self._idle_since = None
            for each in self._ranges:
                each.refused = False
            self._schedule()

    async def close(self) -> None:
        """End all requests."""
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _schedule(self) -> None:
        """Ask for what may be asked for now, the earliest first."""
        for each in self._ranges:
            if each.error is not None or (each.refused and each is not self._ranges[0]):
                return
            if each.wanting and not self._ask(each):
                break
        most = self._most if self._proved else 1
        while self._next < self._stop and len(self._ranges) < self._ahead and len(self._tasks) < most:
            new = _Range(self._next, self._stop if self._undivided else min(self._next + self._size, self._stop))
            self._next = new.stop
            self._ranges.append(new)
            self._ask(new)
        if len(self._tasks) >= self._most:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._loop.time()

    def _ask(self, each: _Range) -> bool:
        """Ask for a range, unless too many requests are under way."""
        if self._closed or len(self._tasks) >= self._most:
            return False
        each.task = self._loop.create_task(self._receive(each), name=f"range from {each.start}")
        self._tasks.add(each.task)
        each.task.add_done_callback(partial(self._ended, each))
        return True

    async def _receive(self, each: _Range) -> None:
        began, received = self._loop.time(), each.received
        try:
            await self._transfer(each)
        except Refused as error:
            self._fewer(each, error)
        except Broken as error:
            each.failures = 0 if each.received > received else each.failures + 1
            if each.failures >= ATTEMPTS:
                each.error = error
        except Exception as error:
            each.error = error
        else:
            self._took.append(self._loop.time() - began)

    def _ended(self, each: _Range, task: asyncio.Task[None]) -> None:
        each.task = None
        self._tasks.discard(task)
        self._wake(each)
        if not self._closed:
            self._schedule()

    async def _transfer(self, each: _Range) -> None:
        async with self._open(each.received, each.stop) as pieces:
            each.answered = True
            self._wake(each)
            if not self._proved:
                self._proved = True
                self._schedule()
            async for piece in pieces:
                if each.received + len(piece) > each.stop:
                    raise Broken("more bytes came than were asked for")
                each.pieces.append(piece)
                each.received += len(piece)
                self._wake(each)
                while each.received - each.given >= self._size and each.received < each.stop:
                    each.room.clear()
                    await each.room.wait()
        if each.received < each.stop:
            raise Broken("a range ended too early")

    def _fewer(self, each: _Range, error: Refused) -> None:
        """Go on with half of the requests. One that is refused though it is the only one is not repeated."""
        each.refused = True
        if len(self._tasks) == 1 and each is self._ranges[0]:
            each.error = error
        elif self._most > 1:
            self._most = max(1, min(self._most, len(self._tasks)) // 2)
            self._refused(self._most, error)

    async def _replace_if_slow(self, first: _Range) -> None:
        """Ask for the range once more when a connection has been idle for too long because of it."""
        if first.task is None or first.replaced or self._idle_since is None:
            return
        if self._loop.time() - self._idle_since >= max(SLOW, statistics.median(self._took)):
            first.replaced = True
            first.task.cancel()  # which schedules it again
            await asyncio.gather(first.task, return_exceptions=True)

    def _wake(self, each: _Range | None = None) -> None:
        if each is None:
            self._tick = None
        if each is None or not self._ranges or each is self._ranges[0]:
            self._moved.set()

    async def _wait(self) -> None:
        """Wait until something happens to the first range, or for a moment."""
        if self._tick is None:
            self._tick = self._loop.call_later(SLOW, self._wake)
        self._moved.clear()
        await self._moved.wait()
