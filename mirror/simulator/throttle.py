"""A line of limited speed."""

import asyncio
from collections.abc import Callable

_TICK = 0.05  # seconds; a slow line moves in pieces of this length, so that it looks even


class Throttle:
    """Limits all connections that share it to `rate()` bytes per second (None: unlimited), asked for each piece."""

    def __init__(self, rate: Callable[[], float | None]) -> None:
        self._rate = rate
        self._free_at = 0.0

    def piece(self, most: int) -> int:
        """Return how many bytes to send at once: 1 to `most`."""
        rate = self._rate()
        return most if rate is None else max(1, min(most, int(rate * _TICK)))

    async def spend(self, count: int) -> None:
        """Wait until the line has room for more, after `count` bytes were put on it."""
        rate = self._rate()
        if rate is None:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + count / rate
        await asyncio.sleep(self._free_at - now)
