"""Limits concurrency, with a bounded queue; callers beyond it get 503."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mirror.model.errors import Unavailable


class Limiter:
    """Lets `count` callers through at once, and the others in turn, first come first served.

    A caller that finds `queue` others waiting, or has waited `patience` seconds, gets Unavailable with `message`.
    """

    def __init__(self, count: int, *, queue: int, patience: float, message: str) -> None:
        self._free = asyncio.Semaphore(count)
        self._queue = queue
        self._patience = patience
        self._message = message
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it. Raises Unavailable."""
        if self._waiting >= self._queue:
            raise self._refusal()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise self._refusal() from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()

    def _refusal(self) -> Unavailable:
        return Unavailable(self._message, retry_after=2)
