"""When several connections are used, and when one: on lines of any kind, in a time that passes at once."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from mirror.common import several_ranges
from mirror.common.ranges_in_order import Refused
from mirror.common.several_ranges import NoRange, SeveralRanges, Transfer
from mirror.model.source import Broken
from tests.support.virtual_time import run

MB = 1_000_000
PIECE = bytes(1 << 20)
SIZE = 4096 * len(PIECE)


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several_ranges, "BUSY", math.inf)  # what is computed here takes no time of the line's


@dataclass
class Line:
    """A line and a server at its end: `rate` is all connections' together, `each` one's, in bytes per second.

    A connection that is new needs `latency` seconds to its first byte. `refusal` says what a range is answered with.
    """

    rate: float = math.inf
    each: float | Callable[[float], float] = math.inf
    latency: float = 0.05
    refusal: Callable[[int], Exception | None] = lambda _: None
    asked: list[tuple[int, int]] = field(default_factory=list)
    sent: int = 0
    ended: bool = False
    most: int = 0
    _active: int = 0
    _free_at: float = 0.0

    def transfer(self, offset: int = 0) -> Transfer:
        """The transfer that upstream redirected to, from `offset` on."""
        self._active += 1
        return Transfer(offset, self._whole(offset), self._open_range)

    async def _whole(self, offset: int) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._pieces(offset, SIZE)) as pieces:
                async for piece in pieces:
                    yield piece
        except GeneratorExit:
            self.ended = True
            raise
        finally:
            self._active -= 1

    @asynccontextmanager
    async def _open_range(self, start: int, stop: int) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append((start, stop))
        await asyncio.sleep(self.latency)
        if refusal := self.refusal(len(self.asked)):
            raise refusal
        self._active += 1
        self.most = max(self.most, self._active)
        try:
            yield self._pieces(start, stop)
        finally:
            self._active -= 1

    async def _pieces(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        clock = asyncio.get_running_loop().time
        began, sent = clock(), 0
        while start + sent < stop:
            piece = PIECE[: stop - start - sent]
            self._free_at = max(self._free_at, clock()) + len(piece) / self.rate
            each = self.each(clock() - began) if callable(self.each) else self.each
            await asyncio.sleep(max(self._free_at - clock(), len(piece) / each))
            sent += len(piece)
            self.sent += len(piece)
            yield piece


def several(most: int = 4) -> SeveralRanges:
    return SeveralRanges(SIZE, lambda: most, lambda words, _connections, refused=False: print(words, refused))


async def received(ranges: SeveralRanges, line: Line, offset: int = 0, *, pace: float = math.inf) -> float:
    """Receive all, at `pace` bytes per second at most; how many seconds it took."""
    clock = asyncio.get_running_loop().time
    began, position = clock(), offset
    async with aclosing(ranges.pieces(line.transfer(offset))) as pieces:
        async for piece in pieces:
            position += len(piece)
            await asyncio.sleep(len(piece) / pace)
    assert position == SIZE
    return clock() - began


@pytest.mark.parametrize(("most", "times"), [(2, 1.9), (4, 3.6), (8, 6.5)])
def test_several_connections_are_several_times_as_fast(most: int, times: float) -> None:
    line = Line(each=20 * MB, latency=0.01)
    took = run(received(several(most), line))
    assert line.most == most
    assert line.ended
    assert took < SIZE / (20 * MB) / times  # although it is watched for two seconds first
    assert line.sent <= SIZE + len(PIECE)


def test_one_may_be_all_that_is_wanted() -> None:
    line = Line(each=20 * MB)
    run(received(several(1), line))
    assert not line.asked


def test_a_line_that_is_full_is_tried_once_and_left_to_one_connection() -> None:
    line = Line(rate=20 * MB)
    ranges = several()
    took = run(received(ranges, line))
    assert took < SIZE / (20 * MB) * 1.03
    assert line.asked[-1][1] == SIZE
    assert line.asked[-1][0] < SIZE // 2  # one request for all that was left
    count = len(line.asked)
    run(received(ranges, line))  # and the next transfer of this fill does not try again
    assert len(line.asked) == count


def test_a_reader_or_a_rate_that_is_slower_than_the_line_gets_one() -> None:
    line = Line(each=100 * MB)
    run(received(several(), line, pace=20 * MB))
    assert not line.asked


def test_a_rate_that_still_grows_is_waited_for() -> None:
    line = Line(each=lambda seconds: 2**seconds * MB)
    run(received(several(), line))
    assert not line.asked


def test_nobody_is_asked_for_what_one_connection_soon_has() -> None:
    line = Line(each=20 * MB)
    run(received(several(), line, SIZE - 150 * MB))
    assert not line.asked


@pytest.mark.parametrize(
    "refusal", [NoRange("it answered 200"), NoRange("it answered 403", expired=True), Refused("it answered 503")]
)
def test_a_server_that_gives_no_ranges_sends_the_rest_in_the_one_transfer(refusal: Exception) -> None:
    line = Line(each=20 * MB, refusal=lambda _: refusal)
    took = run(received(several(), line))
    assert not line.ended
    assert line.sent == SIZE
    assert took == pytest.approx(SIZE / (20 * MB), rel=0.01)
    assert len(line.asked) <= 8


def test_a_range_that_is_not_answered_is_not_waited_for() -> None:
    line = Line(each=20 * MB, latency=60)
    took = run(received(several(), line))
    assert line.sent == SIZE
    assert took < SIZE / (20 * MB) + several_ranges.ANSWER_SECONDS + 1


def test_a_url_that_expires_costs_a_window_and_the_next_transfer_goes_on_with_several_at_once() -> None:
    async def scenario() -> None:
        line = Line(each=5 * MB, refusal=lambda count: NoRange("expired", expired=True) if count > 200 else None)
        ranges, position = several(), 0
        with pytest.raises(Broken, match="expired"):
            async with aclosing(ranges.pieces(line.transfer())) as pieces:
                async for piece in pieces:
                    position += len(piece)
        assert line.sent - position <= several_ranges.WINDOW
        again = Line(each=5 * MB)
        await received(ranges, again, position)
        assert again.most == 4
        assert again.asked[0][0] - position < 12 * MB  # it knows the line already

    run(scenario())


def test_a_url_that_is_soon_refused_is_used_for_one_request_from_then_on() -> None:
    async def scenario() -> None:
        line = Line(each=20 * MB, refusal=lambda count: NoRange("used up", expired=True) if count > 6 else None)
        ranges, position = several(), 0
        with pytest.raises(Broken, match="used up"):
            async with aclosing(ranges.pieces(line.transfer())) as pieces:
                async for piece in pieces:
                    position += len(piece)
        again = Line(each=20 * MB)
        await received(ranges, again, position)
        assert not again.asked

    run(scenario())


def test_a_server_that_takes_two_connections_gets_two(capsys: pytest.CaptureFixture[str]) -> None:
    class Two(Line):
        @asynccontextmanager
        async def _open_range(self, start: int, stop: int) -> AsyncIterator[AsyncIterator[bytes]]:
            async with super()._open_range(start, stop) as pieces:
                if self._active > 2:
                    raise Refused("it answered 503")
                yield pieces

    line = Two(each=20 * MB)
    took = run(received(several(), line))
    assert took < SIZE / (20 * MB) / 1.6
    assert "2 connections: it answered 503 True" in capsys.readouterr().out
