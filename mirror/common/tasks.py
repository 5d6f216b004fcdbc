"""Wait for a thread even when cancelled, so that the caller does not close a file that the thread still uses."""

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def finished(step: "asyncio.Future[T]") -> T:
    """Return what the step returns. When cancelled, wait for the step first, and raise CancelledError then."""
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        raise
