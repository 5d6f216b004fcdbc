"""What processes of one store tell each other about credentials by way of access.json."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.decisions import REMEMBERED, Book, Decisions

LASTING = 1000.0


class Clock:
    """The time of day, which all processes share."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Site:
    """One file, and as many processes as a test wants."""

    def __init__(self, directory: Path, pool: ThreadPoolExecutor) -> None:
        self.file = directory / "access.json"
        self.clock = Clock()
        self._pool = pool

    async def process(self) -> Decisions:
        decisions = Decisions(self.file, lasting=LASTING, pool=self._pool, now=self.clock)
        await decisions.take_up()
        return decisions

    def said(self) -> Book:
        book = Book.read(self.file)
        assert book is not None
        return book


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with ThreadPoolExecutor(8) as pool:
        yield Site(tmp_path, pool)


async def test_processes_that_start_together_come_to_one_key_and_keep_all_yeses(site: Site) -> None:
    processes = [await site.process() for _ in range(8)]
    await asyncio.gather(*(each.accept(f"token {number}") for number, each in enumerate(processes)))
    for each in processes:
        await each.close()
    assert len(site.said().accepted) == len(processes)
    assert site.file.stat().st_mode & 0o777 == 0o600
    later = await site.process()
    for asked in (*processes, later):
        for number in range(len(processes)):
            assert await asked.heard_of(f"token {number}") is not None
        assert await asked.heard_of("another") is None


async def test_a_refusal_beats_an_older_yes_of_another_process(site: Site) -> None:
    one, other = await site.process(), await site.process()
    await one.accept("token")
    await other.refuse("token")
    assert await one.heard_of("token") is None
    await one.accept("something else")
    await one.close()
    assert await (await site.process()).heard_of("token") is None
    assert site.said().refused


async def test_a_yes_beats_an_older_refusal(site: Site) -> None:
    one, other = await site.process(), await site.process()
    await one.accept("token")
    await other.refuse("token")
    await one.accept("token")
    await one.close()
    assert await other.heard_of("token") is not None
    assert await (await site.process()).heard_of("token") is not None
    assert not site.said().refused


async def test_a_refusal_of_a_credential_that_was_never_accepted_leaves_no_trace(site: Site) -> None:
    process = await site.process()
    await process.accept("token")
    before = site.file.read_bytes()
    for number in range(100):
        await process.refuse(f"guess {number}")
    assert site.file.read_bytes() == before


async def test_a_refusal_is_forgotten_when_no_yes_from_before_it_counts_any_more(site: Site) -> None:
    process = await site.process()
    await process.accept("token")
    await process.refuse("token")
    site.clock.now += LASTING
    await process.accept("another")
    await process.close()
    assert not site.said().refused


async def test_what_is_kept_is_bounded_and_the_newest(site: Site) -> None:
    note = {"key": "00" * 32, "accepted": {f"{number:064x}": float(number) for number in range(REMEMBERED + 5)}}
    site.file.write_text(json.dumps(note))  # as an older version wrote it: without refusals
    process = await site.process()
    await process.accept("token")
    await process.close()
    accepted = site.said().accepted
    assert len(accepted) == REMEMBERED
    assert process.name("token") in accepted
    assert f"{REMEMBERED + 4:064x}" in accepted
    assert f"{5:064x}" not in accepted


async def test_a_file_that_makes_no_sense_is_left_alone_until_there_is_something_to_say(site: Site) -> None:
    site.file.write_text("nonsense")
    process = await site.process()
    assert await process.heard_of("token") is None
    assert site.file.read_text() == "nonsense"
    await process.accept("token")
    assert await (await site.process()).heard_of("token") is not None


async def test_a_directory_that_is_not_there_costs_the_memory_of_a_restart_only(site: Site) -> None:
    site.file = site.file.parent / "nowhere" / "access.json"
    process = await site.process()
    await process.accept("token")
    await process.close()
    assert await process.heard_of("token") is not None
