"""Limits how fast images come from upstream, for all fills of all processes of a mirror together: one leaky bucket.

Its state is a few numbers in shared memory, where the bytes that all processes take are added up. A fill that took more
than the bucket holds waits before it takes more; while it waits it reads nothing, and TCP slows upstream down.
"""

import asyncio
import mmap
import os
import struct
import time
import weakref
from collections.abc import AsyncIterator

from mirror.common.shared_memory import locked

BURST_SECONDS = 0.02
"""How much may be taken at once, in seconds of the rate."""

STEP_SECONDS = 0.1
LEAST = 4096
"""How much is passed on at a time, in seconds of the rate, and bytes at least."""

LOOK = 0.25
"""The most seconds that a fill sleeps before it checks whether the rate has changed."""

_STATE = struct.Struct("ddd")
"""The time of the last update (CLOCK_MONOTONIC, the same in all processes), bytes in the bucket, bytes per second or
0."""


class Throttle:
    """The bucket. `descriptor` opens the bucket of another process; without it, a new one is made."""

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = os.memfd_create("pps-mirror-rate", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, _STATE.size)
        weakref.finalize(self, os.close, descriptor)
        self.descriptor = descriptor
        self._state = mmap.mmap(descriptor, _STATE.size)

    def limit(self, rate: int | None) -> None:
        """Limit all that share the bucket to this many bytes per second from now on; None removes the limit."""
        with locked(self.descriptor):
            _, level, _ = self._drained()
            _STATE.pack_into(self._state, 0, time.monotonic(), level if rate else 0.0, float(rate or 0))

    async def pass_on(self, piece: bytes | memoryview) -> AsyncIterator[bytes | memoryview]:
        """Yield received bytes at the allowed rate, in small steps on a thin line, so that readers do not starve."""
        start = 0
        while start < len(piece):
            _, _, rate = _STATE.unpack_from(self._state)
            stop = start + max(LEAST, int(rate * STEP_SECONDS)) if rate else len(piece)
            part = piece[start:stop]
            await self.take(len(part))
            yield part
            start = stop

    async def take(self, size: int) -> None:
        """Count `size` bytes; return when more may be taken."""
        wait = self._put(size)
        while wait > 0:
            await asyncio.sleep(min(wait, LOOK))
            wait = self._put(0)

    def _put(self, size: int) -> float:
        """Put bytes into the bucket; return the seconds until it has room for more."""
        with locked(self.descriptor):
            now, level, rate = self._drained()
            if not rate:
                return 0.0
            _STATE.pack_into(self._state, 0, now, level + size, rate)
            return (level + size) / rate - BURST_SECONDS

    def _drained(self) -> tuple[float, float, float]:
        """Return the state as of now."""
        then, level, rate = _STATE.unpack_from(self._state)
        now = time.monotonic()
        return now, max(0.0, level - (now - then) * rate), rate
