"""Waiting for a step in a thread that uses what its caller will close: it is never left in the midst of one."""

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def finished(step: "asyncio.Future[T]") -> T:
    """What the step returns. Cancelled, it still waits for the step, and is cancelled then."""
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        raise
