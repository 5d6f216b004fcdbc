"""Receives one large object over several connections where one is slow.

It begins with the one transfer that is under way, and watches it for some seconds. Only when its rate no longer grows,
is what the mirror waits for, and much is left, it asks for ranges further on. The transfer goes on up to the first of
them, and only if that is answered as it should be: otherwise it is received to its end, and nothing is lost. When
several connections together are not faster, the line is full, and one is used again.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from mirror.common.ranges_in_order import OpenRange, RangesInOrder, Refused
from mirror.common.units import format_size
from mirror.model.source import Broken

WINDOW = 24 << 20
"""Bytes that may wait in memory because they came before their turn, unless another number is given."""

WATCH = 2.0
"""Seconds that a rate is watched before it is judged."""

FLAT = 1.15
"""A rate still grows if the second half of that time brought more than so many times what the first half did."""

WAITING = 0.6
BUSY = 0.7
"""The share of that time in which the mirror waits for bytes, at least, and in which its event loop computes, at most:
otherwise the disk, `upstream.max_rate` or the processor sets the rate, and not the connection."""

LEFT = 10.0
"""Seconds that one connection would still need, at least, for others to be worth their while."""

LEAD = 1.0
"""Seconds that the transfer may go on until it is at the first range: time for new connections to be made."""

ANSWER_SECONDS = 5.0
"""Seconds that it then waits at most for that range to be answered."""

GAIN = 1.2
"""How much faster than one several connections have to be."""

LATER = 300.0
"""Seconds after which a server that refused requests may be asked for more at a time."""

SOON = 30.0
"""A URL that is refused before so many seconds have passed is not good for several requests, or not for long."""


class NoRange(Exception):
    """The answer to a range is none that can be taken: the whole image, a refusal, a range of something else.

    It `expired` when the URL may have been right some time ago.
    """

    def __init__(self, reason: str, *, expired: bool = False) -> None:
        super().__init__(reason)
        self.expired = expired


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer that is under way: its bytes from `offset` on; closing `pieces` ends it.

    `open_range` asks the same place for ranges; None when it cannot be asked.
    """

    offset: int
    pieces: AsyncGenerator[bytes | memoryview, None]
    open_range: OpenRange | None


class Say(Protocol):
    """Says over how many `connections` an object comes from now on, and why; `refused` if the server wants it."""

    def __call__(self, words: str, connections: int, *, refused: bool = False) -> None:
        """Write it into the log."""


class SeveralRanges:
    """Receives an object of `size` bytes; what was learned in one transfer holds for the next.

    `most` returns how many connections may be used now; up to `window` bytes wait in memory for their turn.
    """

    def __init__(self, size: int, most: Callable[[], int], say: Say, window: int | None = None) -> None:
        self._size = size
        self._most = most
        self._say = say
        self._window = window or WINDOW
        self._limit = (1, -math.inf)  # how many connections may be used at most, and until when
        self._besides = 0  # whether the transfer is under way, besides the ranges
        self._rate_of_one = 0.0
        self._faster: bool | None = None

    async def pieces(self, transfer: Transfer) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield the bytes from the transfer's offset on, over as many connections as are useful. Raises Broken."""
        position, ranges, watch = transfer.offset, None, _Watch()
        try:
            async for piece in transfer.pieces:
                watch.received(len(piece))
                if ranges is None and transfer.open_range is not None and self._wants_more(watch, position):
                    ranges = self._ask(transfer.open_range, position + len(piece))
                if ranges is not None and position + len(piece) >= ranges.start:
                    if await self._answered(ranges):
                        yield piece[: ranges.start - position]
                        break
                    await ranges.close()
                    ranges, self._besides = None, 0
                position += len(piece)
                yield piece
                watch.goes_on()
            else:
                return
            await transfer.pieces.aclose()
            self._besides = 0
            ranges.most = self._now
            async with aclosing(self._in_ranges(ranges)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if ranges is not None:
                await ranges.close()

    @property
    def _now(self) -> int:
        """How many connections may be used now."""
        limit, until = self._limit
        return self._most() if _clock() >= until else min(limit, self._most())

    def _wants_more(self, watch: "_Watch", position: int) -> bool:
        if self._now < 2:
            return False
        if not self._faster:
            if (rate := watch.rate_of_line()) is None:
                return False
            self._rate_of_one = rate
        return self._size - position > max(self._window, self._rate_of_one * LEFT)

    def _ask(self, open_range: OpenRange, position: int) -> RangesInOrder | None:
        """Ask for the first ranges: as many as there may be connections besides the transfer that is at `position`."""
        most = self._now
        ahead = most + most // 2
        size = self._window // ahead
        start = position + max(size, int(self._rate_of_one * LEAD))
        if start >= self._size:
            return None
        self._besides = 1
        return RangesInOrder(
            open_range, start, self._size, size=size, ahead=ahead, most=most - self._besides, refused=self._use_fewer
        )

    async def _answered(self, ranges: RangesInOrder) -> bool:
        """Return whether the first range is on its way. If it is not, there will be one connection from now on."""
        refusal: Exception | None = TimeoutError("no range was answered in time")
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                refusal = await ranges.answered()
        if refusal is not None:
            self._use(1, str(refusal), math.inf if isinstance(refusal, NoRange) else LATER)
            return False
        self._say(f"{self._now} connections: one gives {_rate(self._rate_of_one)} only", self._now)
        return True

    async def _in_ranges(self, ranges: RangesInOrder) -> AsyncGenerator[bytes | memoryview, None]:
        began = _clock()
        trial = _Trial(self._window)
        try:
            async for piece in ranges.pieces():
                if self._faster is None and (rate := trial.rate(len(piece))) is not None:
                    self._faster = rate >= GAIN * self._rate_of_one
                    if not self._faster:
                        self._use(1, f"{ranges.most} give no more: {_rate(rate)}")
                if self._now == 1:
                    ranges.undivide()
                yield piece
        except NoRange as error:
            if not error.expired or _clock() - began < SOON:
                self._use(1, str(error))
            raise Broken(str(error), retry_after=0) from error

    def _use_fewer(self, left: int, error: Refused) -> None:
        """Remember that the server has refused a range while `left` others may go on."""
        self._use(left + self._besides, str(error), LATER)

    def _use(self, connections: int, reason: str, seconds: float = math.inf) -> None:
        """Use so many connections at most, for so long."""
        self._limit = (connections, _clock() + seconds)
        words = f"{connections} connections: {reason}" if connections > 1 else f"one connection: {reason}"
        self._say(words, self._now, refused=seconds < math.inf)


@dataclass(frozen=True, slots=True)
class _Mark:
    """What was counted until `time`: bytes, seconds of waiting for them, seconds that the event loop computed."""

    time: float
    count: int
    waited: float
    busy: float


class _Watch:
    """Watches how bytes come over one connection."""

    def __init__(self) -> None:
        self._count, self._waited, self._asked = 0, 0.0, _clock()
        self._marks: deque[_Mark] = deque([self._mark(self._asked)], maxlen=5)

    def received(self, count: int) -> None:
        """Count bytes that the source gave."""
        now = _clock()
        self._count += count
        self._waited += now - self._asked
        if now - self._marks[-1].time >= WATCH / 4:
            self._marks.append(self._mark(now))

    def goes_on(self) -> None:
        """Note that the source is asked for more bytes now."""
        self._asked = _clock()

    def rate_of_line(self) -> float | None:
        """Return the bytes per second of the last seconds if the connection alone sets them, and they grow no more."""
        if len(self._marks) < 5:
            return None
        first, middle, last = self._marks[0], self._marks[2], self._marks[4]
        seconds = max(last.time - first.time, 1e-6)
        earlier = (middle.count - first.count) / max(middle.time - first.time, 1e-6)
        later = (last.count - middle.count) / max(last.time - middle.time, 1e-6)
        if last.waited - first.waited < WAITING * seconds or last.busy - first.busy > BUSY * seconds:
            return None
        return (last.count - first.count) / seconds if later <= FLAT * earlier else None

    def _mark(self, now: float) -> _Mark:
        return _Mark(now, self._count, self._waited, time.thread_time())


class _Trial:
    """Measures a rate, beginning after `skip` bytes: what waited in the window says nothing of the line."""

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._count = 0
        self._began: float | None = None

    def rate(self, count: int) -> float | None:
        """Count bytes; return how many come in a second when they were watched for long enough."""
        self._skip -= count
        if self._skip > 0:
            return None
        if self._began is None:
            self._began = _clock()
            return None
        self._count += count
        seconds = _clock() - self._began
        return self._count / max(seconds, 1e-6) if seconds >= WATCH else None


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _rate(rate: float) -> str:
    return f"{format_size(int(rate))}/s"
