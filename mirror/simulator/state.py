"""The state that changes while the simulator runs."""

import asyncio
from collections.abc import Iterable

from mirror.simulator.faults import Fault, FaultPlan
from mirror.simulator.grants import Grants
from mirror.simulator.images import LATEST, Image
from mirror.simulator.record import RequestLog
from mirror.simulator.setup import Setup
from mirror.simulator.throttle import Throttle

NO_IMAGE = "none"
"""The name of the current image when there is none."""


class State:
    """The images and which one is current, tokens, faults, rates, the log."""

    def __init__(self, setup: Setup, images: Iterable[Image]) -> None:
        self.images = {image.name: image for image in images}
        self.tokens = frozenset(setup.tokens)
        self.forbidden = frozenset(setup.forbidden)
        self.rate = setup.rate
        self.connection_rate = setup.connection_rate
        self.url_lifetime = setup.url_lifetime
        self.faults = FaultPlan()
        self.grants = Grants()
        self.log = RequestLog()
        self.line = Throttle(lambda: self.rate)
        self.api_url = ""
        self.store_url = ""
        self.held = 0
        self._gate = asyncio.Event()
        self._current: Image | None = None
        self.roll_over(setup.current or next(iter(self.images), NO_IMAGE))

    @property
    def current(self) -> Image | None:
        """Return the image that the API hands out now."""
        return self._current

    def roll_over(self, name: str) -> None:
        """Make another image the current one, or none with `NO_IMAGE`. Running transfers go on with theirs.

        Raises:
            KeyError: there is no such image.
        """
        self._current = None if name == NO_IMAGE else self.images[name]

    def decided(self, fault: Fault) -> None:
        """Roll over, if the fault wants it as soon as an answer is decided."""
        if fault.roll_over is not None and not fault.roll_over_after:
            self.roll_over(fault.roll_over)

    def image_at(self, key: str) -> Image | None:
        """Return the image under a key of the object store."""
        return self._current if key == LATEST else self.images.get(key)

    async def wait_for_release(self) -> None:
        """Wait until `release` is called next."""
        self.held += 1
        try:
            await self._gate.wait()
        finally:
            self.held -= 1

    def release(self) -> None:
        """Let every answer go on that waits now; later ones wait for the next call."""
        self._gate.set()
        self._gate = asyncio.Event()
