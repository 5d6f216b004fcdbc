"""Shows a person how far a fill is, for a command that waits for it."""

import asyncio
import contextlib

from mirror.common.progress import Meter
from mirror.common.units import format_size
from mirror.images.fill import Fill

TICK = 0.2
"""Seconds between two updates."""


async def show_progress(fill: Fill, meter: Meter, *, kept: str, doing: str | None = None) -> None:
    """Show how far a fill is until its verdict, under the words `doing` or else its state. Raises FillFailed.

    When cancelled, it says how far the fill came, and that this much is `kept`.
    """
    size = fill.metadata.size
    meter.start(size, fill.position, doing or fill.state)
    try:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await fill.ended()
                    break
            meter.show(fill.position, doing or fill.state)
        meter.show(size, doing or fill.state)
    except asyncio.CancelledError:
        meter.stop()
        meter.say(f"stopped at {format_size(fill.position)} of {format_size(size)}: that is kept, and {kept}")
        raise
    finally:
        meter.stop()
