"""One rate for all processes."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

from mirror.upstream.throttle import Throttle

MB = 1_000_000

TAKER = """
import asyncio, sys, time
from mirror.upstream.throttle import Throttle

async def take(throttle, size, until):
    taken = 0
    while time.monotonic() < until:
        await throttle.take(size)
        taken += size
    return taken

async def main():
    throttle = Throttle(int(sys.argv[1]))
    until = float(sys.argv[2])
    print(sum(await asyncio.gather(*(take(throttle, size, until) for size in (65536, 20000)))))

asyncio.run(main())
"""


async def taken(throttle: Throttle, seconds: float, size: int = 65536) -> int:
    until, total = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        await throttle.take(size)
        total += size
    return total


async def test_a_rate_is_kept_from_the_first_second_on() -> None:
    throttle = Throttle()
    throttle.limit(4 * MB)
    for _ in range(3):
        assert await taken(throttle, 1.0) == pytest.approx(4 * MB, rel=0.05, abs=70_000)


def test_processes_share_one_rate() -> None:
    throttle = Throttle()
    throttle.limit(8 * MB)
    began = time.monotonic() + 1.5  # when both have started
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, str(throttle.descriptor), str(began + 3)],
            pass_fds=[throttle.descriptor],
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    first = time.monotonic()
    shares = [int(taker.communicate()[0]) for taker in takers]
    assert sum(shares) < 1.05 * 8 * MB * (time.monotonic() - first)
    # They begin at moments of their own, so the rate is taken over the time in which they surely ran.
    assert sum(shares) > 8 * MB * 3 * 0.95
    assert min(shares) > sum(shares) / 10
    assert [taker.returncode for taker in takers] == [0, 0]


async def test_a_change_holds_at_once_also_for_those_who_wait() -> None:
    throttle = Throttle()
    throttle.limit(1000)
    waiting = asyncio.create_task(throttle.take(1_000_000))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    throttle.limit(None)
    await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(throttle.take(1 << 30), 1)


async def test_what_was_not_used_is_not_saved_up() -> None:
    throttle = Throttle()
    throttle.limit(4 * MB)
    await asyncio.sleep(1)
    assert await taken(throttle, 1.0) == pytest.approx(4 * MB, rel=0.05, abs=70_000)


def test_the_memory_has_no_name_and_is_not_inherited_by_chance() -> None:
    throttle = Throttle()
    assert not os.get_inheritable(throttle.descriptor)
