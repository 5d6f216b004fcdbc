"""One rate for all processes."""

import asyncio
import itertools
import os
import subprocess
import sys
import time

import pytest

from mirror.upstream import rate_limit as throttle_module
from mirror.upstream.rate_limit import Throttle

MB = 1_000_000

TAKER = """
import asyncio, sys
from mirror.upstream.rate_limit import Throttle

async def take(throttle, size):
    for _ in range(2_000_000 // size):
        await throttle.take(size)

async def main():
    throttle = Throttle(int(sys.argv[1]))
    await asyncio.gather(take(throttle, 65536), take(throttle, 20000))

asyncio.run(main())
"""


class Clock:
    """Time that passes only while somebody sleeps, so that no machine is too slow for a test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-6)  # as a real clock: never too little to be a difference


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The throttle's."""
    clock = Clock()
    monkeypatch.setattr(throttle_module, "time", clock)
    monkeypatch.setattr(throttle_module, "asyncio", clock)
    return clock


async def taken(clock: Clock, seconds: float, *throttles: Throttle, size: int = 65536) -> int:
    until, total = clock.now + seconds, 0
    for throttle in itertools.cycle(throttles):
        if clock.now >= until:
            return total
        await throttle.take(size)
        total += size
    raise AssertionError


async def test_a_rate_is_kept_from_the_first_second_on(clock: Clock) -> None:
    throttle = Throttle()
    throttle.limit(4 * MB)
    for _ in range(3):
        assert await taken(clock, 1.0, throttle) == pytest.approx(4 * MB, rel=0.05)


async def test_two_have_one_rate_and_all_of_it(clock: Clock) -> None:
    throttle = Throttle()
    throttle.limit(8 * MB)
    other = Throttle(os.dup(throttle.descriptor))
    assert await taken(clock, 3.0, throttle, other) == pytest.approx(24 * MB, rel=0.05)


def test_processes_share_one_rate() -> None:
    throttle = Throttle()
    throttle.limit(2 * MB)
    began = time.monotonic()
    takers = [
        subprocess.Popen([sys.executable, "-c", TAKER, str(throttle.descriptor)], pass_fds=[throttle.descriptor])
        for _ in range(2)
    ]
    assert [taker.wait() for taker in takers] == [0, 0]
    assert time.monotonic() - began > 0.95 * 4  # each takes 4 MB; by itself it would have them in 2 s


async def test_a_change_holds_at_once_also_for_those_who_wait() -> None:
    throttle = Throttle()
    throttle.limit(1000)
    waiting = asyncio.create_task(throttle.take(1_000_000))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    throttle.limit(None)
    await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(throttle.take(1 << 30), 1)


async def test_what_was_not_used_is_not_saved_up(clock: Clock) -> None:
    throttle = Throttle()
    throttle.limit(4 * MB)
    clock.now += 1
    assert await taken(clock, 1.0, throttle) == pytest.approx(4 * MB, rel=0.05)


def test_the_memory_has_no_name_and_is_not_inherited_by_chance() -> None:
    throttle = Throttle()
    assert not os.get_inheritable(throttle.descriptor)
