"""Keeps what took long to find out, for a moment, for everybody who asks."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cached(Generic[T]):
    """What `look` returns, for so many `seconds` afterwards. One look at a time is under way; others wait for it."""

    def __init__(self, look: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._looking = asyncio.Lock()
        self._good_until = float("-inf")
        self._expired = 0
        self.last: T | None = None
        """What the last look returned, however old."""

    async def get(self) -> T:
        """Return what is kept, or look. Raises what the look raises."""
        async with self._looking:
            if self.last is not None and time.monotonic() < self._good_until:
                return self.last
            expired = self._expired
            self.last = await self._look()
            if expired == self._expired:  # else something has changed since the look began
                self._good_until = time.monotonic() + self._seconds
            return self.last

    def expire(self) -> None:
        """Look again at the next call, because something has changed; a look that is under way may not have seen it."""
        self._expired += 1
        self._good_until = float("-inf")
