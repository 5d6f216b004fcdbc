"""While a piece of a body is sent, a thread makes the next one."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.http.read_ahead import LEAST, MEMORY, MOST, PIECES, TURN, ReadAhead, piece_size
from mirror.store.base import Cut

SIZE = 10


class Reader:
    """Makes `content`, and fails with `error` behind it; waits before each piece while `gate` is closed."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.made = 0
        self.inside = False
        self._content = content
        self._error = error

    def check(self) -> None:
        """See `BlockingReader`."""

    def readinto(self, into: memoryview) -> int:
        """See `BlockingReader`."""
        assert not self.inside, "two threads at once"
        self.inside = True
        self.gate.wait()
        piece, self._content = self._content[: len(into)], self._content[len(into) :]
        self.inside = False
        if not piece and self._error:
            raise self._error
        into[: len(piece)] = piece
        self.made += 1
        return len(piece)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


async def _taken(ahead: ReadAhead) -> bytes:
    found = b""
    while piece := await ahead.next():
        found += piece
    return found


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("size", [0, 1, SIZE, SIZE + 1, SIZE * PIECES, SIZE * TURN, SIZE * (TURN + 1), SIZE * 1000 + 3])
async def test_all_comes_in_order(pool: ThreadPoolExecutor, size: int) -> None:
    content = bytes(number % 251 for number in range(size))
    async with ReadAhead(Reader(content), pool, SIZE) as ahead:
        assert await _taken(ahead) == content


async def test_a_piece_that_is_being_sent_stays_as_it_is(pool: ThreadPoolExecutor) -> None:
    reader = Reader(b"".join(bytes([letter]) * SIZE for letter in b"abcdef"))
    async with ReadAhead(reader, pool, SIZE) as ahead:
        piece = await ahead.next()
        await _until(lambda: reader.made >= PIECES)
        await asyncio.sleep(0.05)
        assert (bytes(piece), reader.made) == (b"a" * SIZE, PIECES)  # so much is made, and no more
        assert await _taken(ahead) == b"".join(bytes([letter]) * SIZE for letter in b"bcdef")


async def test_what_was_made_before_an_error_comes_first(pool: ThreadPoolExecutor) -> None:
    async with ReadAhead(Reader(b"x" * (3 * SIZE + 4), Cut("it is damaged")), pool, SIZE) as ahead:
        assert [len(await ahead.next()) for _ in range(4)] == [SIZE, SIZE, SIZE, 4]
        with pytest.raises(Cut, match="it is damaged"):
            await ahead.next()


async def test_one_that_leaves_waits_for_the_thread_and_has_no_more_made(pool: ThreadPoolExecutor) -> None:
    reader = Reader(b"x" * 100 * SIZE)
    reader.gate.clear()
    loop = asyncio.get_running_loop()

    async def use() -> None:
        async with ReadAhead(reader, pool, SIZE) as ahead:
            await ahead.next()

    task = asyncio.create_task(use())
    await _until(lambda: reader.inside)
    task.cancel()
    loop.call_later(0.05, reader.gate.set)
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began > 0.04
    assert not reader.inside
    assert reader.made == 1


async def test_one_client_never_keeps_a_thread_to_itself() -> None:
    with ThreadPoolExecutor(1) as only:
        one, other = Reader(b"a" * 1000 * SIZE), Reader(b"b" * SIZE)
        async with ReadAhead(one, only, SIZE) as first, ReadAhead(other, only, SIZE) as second:
            taking = asyncio.create_task(_taken(first))
            assert await _taken(second) == b"b" * SIZE
            assert one.made < 1000
            assert len(await taking) == 1000 * SIZE


def test_pieces_are_smaller_the_more_clients_there_are_and_never_larger_than_what_is_sent() -> None:
    assert piece_size(1, 1 << 40) == MOST
    assert piece_size(50, 1 << 40) * PIECES * 50 <= MEMORY
    assert piece_size(10_000, 1 << 40) == LEAST
    assert piece_size(1, 700) == 700
    assert piece_size(1, 0) == 1
