"""Ranges over several connections: whatever happens to them, the right bytes in order, or the reason why not."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mirror.common.ranges_in_order import ATTEMPTS, RangesInOrder, Refused
from mirror.model.source import Broken
from tests.support.virtual_time import run

DATA = random.Random(1).randbytes(10_000)
PIECE = 700


class Wrong(Exception):
    """The answer is none that can be taken."""


@dataclass(frozen=True)
class Fate:
    """What becomes of one request; as it stands, nothing. `after` counts body bytes; times are in seconds."""

    error: type[Exception] | None = None
    latency: float = 0.0
    pause: float = 0.0
    piece: int = 300
    after: int | None = None
    hangs: bool = False


@dataclass
class Server:
    """Answers each request as the next fate says. It counts what it is asked for at a time, and what it gave."""

    fates: list[Fate] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    active: int = 0
    most: int = 0
    gave: int = 0

    @asynccontextmanager
    async def open_range(self, start: int, stop: int) -> AsyncIterator[AsyncIterator[bytes]]:
        fate = self.fates.pop(0) if self.fates else Fate()
        self.asked.append((start, stop))
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await asyncio.sleep(fate.latency)
            if fate.error is not None:
                raise fate.error("as the script says")
            yield self._pieces(fate, start, stop)
        finally:
            self.active -= 1

    async def _pieces(self, fate: Fate, start: int, stop: int) -> AsyncIterator[bytes]:
        last = stop if fate.after is None else min(stop, start + fate.after)
        for first in range(start, last, fate.piece):
            await asyncio.sleep(fate.pause)
            piece = DATA[first : min(first + fate.piece, last)]
            self.gave += len(piece)
            yield piece
        if fate.hangs:
            await asyncio.sleep(30)  # until the transfer counts as broken
        if last < stop:
            raise Broken("as the script says")


async def read(server: Server, most: int, size: int, ahead: int, start: int = 0, pause: float = 0.0) -> bytes:
    """Read all from `start` on, and check how much waits in memory."""
    received = bytearray()
    window = size * ahead + PIECE
    ranges = RangesInOrder(server.open_range, start, len(DATA), size=size, ahead=ahead, most=most)
    try:
        async with aclosing(ranges.pieces()) as pieces:
            async for piece in pieces:
                received += piece
                assert server.gave - len(received) <= window
                await asyncio.sleep(pause)
                assert server.gave - len(received) <= window
    except Exception:
        assert DATA.startswith(received, start)
        raise
    finally:
        await ranges.close()
        assert server.active == 0
        assert server.most <= most
    return bytes(received)


times = st.sampled_from([0.0, 0.01, 0.5, 3.0])
cuts = st.builds(Fate, latency=times, pause=times, piece=st.integers(1, PIECE), after=st.none() | st.integers(0, 2000))
slow = st.builds(Fate, latency=times, after=st.integers(0, 500), hangs=st.just(True))
refusals = st.builds(Fate, error=st.sampled_from([Refused, Broken]), latency=times)
sizes = st.tuples(st.integers(1, 6), st.integers(200, 3000), st.integers(1, 8))


@settings(max_examples=300, deadline=None)
@given(
    fates=st.lists(cuts | slow | refusals | st.just(Fate(error=Wrong)), max_size=12),
    sizes=sizes,
    start=st.integers(0, len(DATA) - 1),
    pause=times,
)
def test_whatever_happens_the_bytes_come_in_order_each_once_and_few_wait(
    fates: list[Fate], sizes: tuple[int, int, int], start: int, pause: float
) -> None:
    async def scenario() -> None:
        server = Server(list(fates))
        doomed = {Wrong, Refused} & {fate.error for fate in fates}
        barren = [fate for fate in fates if fate.error is Broken or fate.after == 0]
        try:
            received = await read(server, *sizes, start, pause)
        except (Broken, Wrong):
            event("in vain")
            assert doomed or len(barren) >= ATTEMPTS
        else:
            assert received == DATA[start:]
            assert server.gave == len(DATA) - start  # each byte once, whatever broke

    run(scenario())


@given(sizes=sizes)
def test_when_nothing_happens_each_byte_is_asked_for_once(sizes: tuple[int, int, int]) -> None:
    async def scenario() -> None:
        server = Server()
        assert await read(server, *sizes) == DATA
        asked = sorted(server.asked)
        assert asked[0][0] == 0
        assert asked[-1][1] == len(DATA)
        assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(asked))

    run(scenario())


def test_so_many_are_asked_for_at_once_as_may_be_and_others_when_there_is_room() -> None:
    async def scenario() -> None:
        server = Server([Fate(pause=10)])  # the first is slow: what others give has to wait
        ranges = RangesInOrder(server.open_range, 0, len(DATA), size=1000, ahead=6, most=4)
        await asyncio.sleep(1)
        assert server.most == 4
        assert server.asked == [(number * 1000, number * 1000 + 1000) for number in range(6)]
        assert server.gave == 5000
        await ranges.close()

    run(scenario())


def test_one_that_holds_all_others_up_is_asked_for_again() -> None:
    async def scenario() -> None:
        server = Server([Fate(), Fate(after=100, hangs=True)])
        assert await read(server, most=4, size=1000, ahead=6) == DATA
        assert server.asked.count((1000, 2000)) == 1
        assert server.asked.count((1100, 2000)) == 1

    run(scenario())


def test_a_server_that_refuses_more_is_asked_for_half_as_many() -> None:
    async def scenario() -> None:
        left: list[int] = []
        server = Server([Fate(pause=1), Fate(error=Refused)])
        ranges = RangesInOrder(
            server.open_range, 0, len(DATA), size=500, ahead=6, most=4, refused=lambda most, _: left.append(most)
        )
        async with aclosing(ranges.pieces()) as pieces:
            assert b"".join([piece async for piece in pieces]) == DATA
        assert left == [2]
        assert ranges.most == 2

    run(scenario())


def test_what_is_refused_as_the_only_one_is_not_asked_for_without_end() -> None:
    async def scenario() -> None:
        server = Server([Fate(error=Refused)] * 100)
        with pytest.raises(Refused):
            await read(server, most=4, size=1000, ahead=6)
        assert len(server.asked) <= 8

    run(scenario())


def test_with_one_connection_from_some_point_on_one_request_gets_all_that_is_left() -> None:
    async def scenario() -> None:
        server = Server()
        ranges = RangesInOrder(server.open_range, 0, len(DATA), size=1000, ahead=6, most=4)
        received = b""
        async with aclosing(ranges.pieces()) as pieces:
            async for piece in pieces:
                received += piece
                ranges.undivide()
        assert received == DATA
        assert server.asked[-1] == (server.asked[-2][1], len(DATA))
        assert len(server.asked) <= 6

    run(scenario())


def test_a_connection_that_gives_more_than_it_was_asked_for_is_left() -> None:
    async def scenario() -> None:
        server = Server()

        @asynccontextmanager
        async def open_range(start: int, stop: int) -> AsyncIterator[AsyncIterator[bytes]]:
            async with server.open_range(start, stop + 100) as pieces:
                yield pieces

        ranges = RangesInOrder(open_range, 0, len(DATA), size=1000, ahead=3, most=2)
        with pytest.raises(Broken, match="more bytes"):
            async with aclosing(ranges.pieces()) as pieces:
                received = b"".join([piece async for piece in pieces])
                assert not received
        await ranges.close()

    run(scenario())
