"""Signals as calls in the event loop: at no moment is one lost."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from mirror.process import signals
from mirror.process.signals import on_signal, stop_requested

NUMBER = signal.SIGUSR1


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    numbers = (NUMBER, *signals.STOPPING)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


async def test_no_signal_is_lost_while_the_handler_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    set_handler, sent = signal.signal, 0

    def set_and_send(number: int, handler: signal.Handlers) -> object:
        nonlocal sent
        before = set_handler(number, handler)
        sent += 1
        signal.raise_signal(NUMBER)
        return before

    set_handler(NUMBER, lambda *_: heard.append("the former handler"))
    monkeypatch.setattr("signal.signal", set_and_send)
    on_signal(NUMBER, lambda: heard.append("the callback"))
    monkeypatch.undo()
    signal.raise_signal(NUMBER)
    await asyncio.sleep(0.01)
    assert len(heard) == sent + 1
    assert heard[-2:] == ["the callback"] * 2


async def test_a_signal_wakes_a_loop_that_has_nothing_to_do() -> None:
    heard = asyncio.Event()
    on_signal(NUMBER, heard.set)
    waker = await asyncio.create_subprocess_exec("sh", "-c", f"sleep 0.2; kill -USR1 {os.getpid()}")
    async with asyncio.timeout(5):
        await heard.wait()
        assert await waker.wait() == 0


async def test_a_request_to_stop_before_anybody_waits_for_it_counts() -> None:
    stop = stop_requested()
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        await stop.wait()
    assert [signal.getsignal(number) for number in signals.STOPPING] == [signal.SIG_DFL] * 2


def test_a_signal_after_the_loops_end_is_no_error() -> None:
    async def begin() -> None:
        on_signal(NUMBER, lambda: None)

    asyncio.run(begin())
    signal.raise_signal(NUMBER)
