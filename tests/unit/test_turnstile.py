"""So many at once, the others in turn, and who would wait too long is told to come back."""

import asyncio

import pytest

from mirror.common.concurrency_limit import Limiter
from mirror.model.errors import Unavailable


async def test_so_many_go_through_at_once_and_the_others_in_turn() -> None:
    turnstile = Limiter(2, queue=10, patience=60.0, message="come back")
    through: list[int] = []
    gates = [asyncio.Event() for _ in range(4)]

    async def go(number: int) -> None:
        async with turnstile.turn():
            through.append(number)
            await gates[number].wait()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(go(number)) for number in range(4)]
        await asyncio.sleep(0.01)
        assert through == [0, 1]
        gates[1].set()
        await tasks[1]
        await asyncio.sleep(0.01)
        assert through == [0, 1, 2]
        for gate in gates:
            gate.set()
    assert through == [0, 1, 2, 3]


async def test_who_finds_too_many_waiting_or_waits_too_long_is_told_to_come_back() -> None:
    turnstile = Limiter(1, queue=1, patience=0.05, message="come back")
    async with turnstile.turn():

        async def wait() -> None:
            async with turnstile.turn():
                raise AssertionError("it had its turn")

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="come back"):
            async with turnstile.turn():
                raise AssertionError("it had its turn")
        with pytest.raises(Unavailable, match="come back"):
            await waiting
    async with turnstile.turn():  # nothing is left of them
        pass


async def test_who_leaves_while_waiting_takes_nothing_along() -> None:
    turnstile = Limiter(1, queue=1, patience=60.0, message="come back")
    for _ in range(5):
        async with turnstile.turn():

            async def wait() -> None:
                async with turnstile.turn():
                    raise AssertionError("it had its turn")

            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    async with turnstile.turn():
        pass
