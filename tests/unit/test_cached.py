"""What is kept for a moment: how long, and what ends it."""

import asyncio
from itertools import count

import pytest

from mirror.common.cached import Cached


async def test_all_who_ask_at_once_wait_for_one_look() -> None:
    looks = count(1)

    async def look() -> int:
        await asyncio.sleep(0.01)
        return next(looks)

    cached = Cached(look, 60)
    assert await asyncio.gather(*(cached.get() for _ in range(5))) == [1] * 5
    assert (await cached.get(), cached.last) == (1, 1)


async def test_it_is_looked_up_again_when_it_is_old_or_has_changed() -> None:
    looks = count(1)

    async def look() -> int:
        return next(looks)

    assert [await cached.get() for cached in [Cached(look, -1)] * 2] == [1, 2]
    cached = Cached(look, 60)
    assert await cached.get() == 3
    cached.expire()
    assert [await cached.get(), await cached.get()] == [4, 4]


async def test_what_changes_during_a_look_is_seen_by_whoever_asks_after_the_change() -> None:
    now, seen, go_on = "before", asyncio.Event(), asyncio.Event()

    async def look() -> str:
        found = now
        seen.set()
        await go_on.wait()
        return found

    cached = Cached(look, 60)
    first = asyncio.create_task(cached.get())
    await seen.wait()
    now = "after"
    cached.expire()
    second = asyncio.create_task(cached.get())
    go_on.set()
    assert [await first, await second, await cached.get()] == ["before", "after", "after"]


async def test_a_look_that_fails_is_tried_again_and_what_was_seen_last_stays() -> None:
    looks = count(1)

    async def look() -> int:
        if (number := next(looks)) == 2:
            raise OSError("gone")
        return number

    cached = Cached(look, 60)
    assert await cached.get() == 1
    cached.expire()
    with pytest.raises(OSError, match="gone"):
        await cached.get()
    assert cached.last == 1
    assert await cached.get() == 3
