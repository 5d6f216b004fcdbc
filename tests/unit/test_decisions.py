"""What processes of one store tell each other about credentials by way of access.json."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.access.decisions import REMEMBERED, Book, Decisions
from mirror.common.clock import Clock

LASTING = 1000.0


HOUR = 3600.0


class Hands:
    """The clocks of a machine, which all its processes share. They go on by a second when somebody looks."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.ahead = 1_700_000_000.0
        self.boot = "monday"

    def clock(self) -> Clock:
        return Clock(lambda: self._look() + self.ahead, self._look, self.boot)

    def _look(self) -> float:
        self.now += 1.0
        return self.now

    def set_back(self, seconds: float) -> None:
        """Set the time of day, which nothing else notices."""
        self.ahead -= seconds

    def boot_again(self) -> None:
        """Begin the steady clock anew; the time of day goes on."""
        self.boot = "tuesday"
        self.ahead += self.now
        self.now = 0.0


class Site:
    """One file, and as many processes as a test wants."""

    def __init__(self, directory: Path, pool: ThreadPoolExecutor) -> None:
        self.file = directory / "access.json"
        self.hands = Hands()
        self._pool = pool

    async def process(self) -> Decisions:
        decisions = Decisions(self.file, lasting=LASTING, pool=self._pool, clock=self.hands.clock())
        await decisions.take_up()
        return decisions

    async def lets_in(self, process: Decisions, token: str) -> bool:
        """Whether it would let in who has that token, while upstream is away."""
        accepted = await process.heard_of(token)
        return accepted is not None and self.hands.now - accepted <= LASTING

    def said(self) -> Book:
        book = Book.read(self.file, self.hands.clock())
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
    site.hands.now += LASTING
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


# The clock is set


async def test_a_process_forgets_nobody_when_the_clock_is_set_and_what_it_writes_then_is_right(site: Site) -> None:
    process = await site.process()
    await process.accept("token")
    site.hands.set_back(HOUR)
    assert await site.lets_in(process, "token")
    await process.accept("another")
    await process.close()
    assert await site.lets_in(await site.process(), "token")


async def test_what_upstream_said_to_this_process_alone_is_fresh(site: Site) -> None:
    one, other = await site.process(), await site.process()
    await one.accept("token")
    assert await site.lets_in(other, "token")
    assert one.heard_at(one.name("token")) is not None
    assert other.heard_at(other.name("token")) is None
    await other.refuse("token")
    assert not await site.lets_in(one, "token")
    assert one.heard_at(one.name("token")) is None


@pytest.mark.parametrize("booted", [False, True])
async def test_a_yes_of_a_time_that_is_yet_to_come_is_none_also_when_that_time_has_come(
    site: Site, booted: bool
) -> None:
    process = await site.process()
    await process.accept("token")
    await process.close()
    if booted:
        site.hands.boot_again()
    site.hands.set_back(HOUR)
    later = await site.process()
    assert not await site.lets_in(later, "token")
    await later.close()
    site.hands.now += 2 * HOUR
    assert not await site.lets_in(await site.process(), "token")


@pytest.mark.parametrize("booted", [False, True])
@pytest.mark.parametrize("back", [HOUR, -HOUR])
async def test_a_no_lets_nobody_in_and_locks_nobody_out_whatever_the_clock_says(
    site: Site, back: float, booted: bool
) -> None:
    one, other = await site.process(), await site.process()
    await one.accept("token")
    await other.take_up()
    await one.refuse("token")
    if booted:
        other = await site.process()
        site.hands.boot_again()
    site.hands.set_back(back)
    for each in (other, await site.process()):
        assert not await site.lets_in(each, "token")
    later = await site.process()
    await later.accept("token")
    await later.close()
    await later.accept("token")
    await later.close()
    for each in (later, await site.process()):
        assert await site.lets_in(each, "token")
    assert not site.said().refused


async def test_a_later_word_is_the_later_one_when_the_clock_was_set_in_between(site: Site) -> None:
    one, other = await site.process(), await site.process()
    await one.accept("token")
    site.hands.set_back(HOUR)
    await other.refuse("token")  # by the time of day this was before
    assert not await site.lets_in(one, "token")
    site.hands.set_back(HOUR)
    await one.accept("token")
    await one.close()
    assert await site.lets_in(await site.process(), "token")


async def test_an_older_versions_times_that_are_yet_to_come_are_written_away(site: Site) -> None:
    process = await site.process()
    await process.accept("token")
    await process.accept("another")
    await process.close()
    name = process.name("token")
    note = json.loads(site.file.read_text())
    ahead = site.hands.ahead + site.hands.now + HOUR
    old = {"key": note["key"], "accepted": {name: ahead}, "refused": {process.name("another"): ahead}}
    site.file.write_text(json.dumps(old))
    later = await site.process()
    await later.close()
    note = json.loads(site.file.read_text())
    assert all(when < ahead - HOUR / 2 for kind in ("accepted", "refused") for when in note[kind].values())
    await later.accept("another")
    await later.close()
    assert await site.lets_in(await site.process(), "another")
