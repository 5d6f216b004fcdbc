"""The journal in memory alone: what it keeps, whom it waits for, and who falls behind."""

import asyncio
import hashlib

import pytest

from mirror.store import memory as window_module
from mirror.store.base import Corrupt, FellBehind
from mirror.store.memory import Abandoned, MemoryWindow
from tests.support.scripted import metadata_of

SIZE = 1000
IMAGE = bytes(number * 7 % 251 for number in range(5 * SIZE))
METADATA = metadata_of(IMAGE)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "SIZE", SIZE)
    monkeypatch.setattr(window_module, "GATHER", 0.0)
    monkeypatch.setattr(window_module, "READER_GRACE", 0.05)
    monkeypatch.setattr(window_module, "LONELY", 0.05)


async def fill(window: MemoryWindow, pace: int = 300) -> None:
    """Append the rest of the image."""
    while window.position < len(IMAGE):
        await window.append([IMAGE[window.position : window.position + pace]])


async def read_all(window: MemoryWindow, start: int = 0, pause: float = 0.0) -> bytes:
    """Read along to the end as quickly as there is something, or with a pause at each step."""
    received = b""
    async with window.reader(start) as reader:
        while reader.position < len(IMAGE):
            if reader.position < window.position:
                received += await reader.take(window.position)
            await asyncio.sleep(pause)
    return received


async def test_readers_that_keep_up_get_every_byte_however_quick_the_line_is() -> None:
    window = MemoryWindow(METADATA)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        readers = [group.create_task(read_all(window)) for _ in range(5)]
        group.create_task(fill(window))
    assert [reader.result() == IMAGE for reader in readers] == [True] * 5
    await window.publish()


async def test_the_line_waits_for_the_only_reader() -> None:
    window = MemoryWindow(METADATA)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        reader = group.create_task(read_all(window, pause=0.06))  # longer than anybody's patience
        group.create_task(fill(window))
    assert reader.result() == IMAGE


async def test_a_reader_that_others_wait_for_falls_behind_when_their_patience_is_over() -> None:
    window = MemoryWindow(METADATA)
    async with window.reader(0) as stalled:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            quick = group.create_task(read_all(window))
            group.create_task(fill(window))
        assert quick.result() == IMAGE
        with pytest.raises(FellBehind):
            await stalled.take(len(IMAGE))


async def test_a_reader_of_a_later_range_makes_nobody_fall_behind() -> None:
    window = MemoryWindow(METADATA)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        slow = group.create_task(read_all(window, pause=0.06))
        later = group.create_task(read_all(window, 4900))
        group.create_task(fill(window))
    assert (slow.result(), later.result()) == (IMAGE, IMAGE[4900:])


async def test_who_comes_when_the_first_bytes_have_gone_is_told_so() -> None:
    window = MemoryWindow(METADATA)
    async with window.reader(0) as reader:
        await window.append([IMAGE[:900]])
        while reader.position < 900:
            await reader.take(900)
        await window.append([IMAGE[900:1500]])
        assert window.start == 500
        async with window.reader(499) as late:
            with pytest.raises(FellBehind):
                await late.take(1500)
        async with window.reader(500) as late:
            assert await late.take(1500) == IMAGE[500:1000]  # up to the end of the ring
            assert await late.take(1500) == IMAGE[1000:1500]


async def test_the_first_bytes_stay_for_those_who_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "GATHER", 1.0)
    window = MemoryWindow(METADATA)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        first = group.create_task(read_all(window))
        group.create_task(fill(window))
        await asyncio.sleep(0.05)
        second = group.create_task(read_all(window))
    assert first.result() == second.result() == IMAGE


async def test_a_window_without_readers_is_given_up() -> None:
    with pytest.raises(Abandoned):
        await asyncio.wait_for(fill(MemoryWindow(METADATA)), 10)


async def test_a_window_goes_on_where_another_journal_failed_and_verifies_the_whole() -> None:
    window = MemoryWindow(METADATA, 1234, hashlib.sha256(IMAGE[:1234]))
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        reader = group.create_task(read_all(window, 1234))
        group.create_task(fill(window))
    assert reader.result() == IMAGE[1234:]
    await window.publish()


@pytest.mark.parametrize("wrong", [IMAGE[:-1], IMAGE[:-1] + b"\0", b""])
async def test_wrong_bytes_are_not_verified(wrong: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "SIZE", len(IMAGE))
    window = MemoryWindow(METADATA)
    await window.append([wrong])
    with pytest.raises(Corrupt, match=METADATA.hash):
        await window.publish()
