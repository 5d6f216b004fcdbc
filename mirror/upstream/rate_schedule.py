"""Sets the throttle to the rate that applies at this time of the day."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, tzinfo

from mirror.common import schedule
from mirror.common.log import event
from mirror.common.units import format_size
from mirror.config import RateWindow, Upstream
from mirror.upstream.rate_limit import Throttle

LOOK = 1.0
"""Seconds between two checks of the clock: windows begin at a full minute, and clocks are set."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a line may be used: at the rate of the first open window, else at `otherwise`; None: no limit."""

    windows: Sequence[RateWindow] = ()
    otherwise: int | None = None

    def at(self, moment: datetime, zone: tzinfo | None = None) -> int | None:
        """Return the bytes per second at that time."""
        for each in self.windows:
            if schedule.is_open(each.window, moment, zone):
                return each.rate
        return self.otherwise


class RateSchedule:
    """Sets `throttle` to the rate that the schedule gives at each time of the day."""

    def __init__(self, throttle: Throttle, config: Upstream, now: Callable[[], datetime] | None = None) -> None:
        self._throttle = throttle
        self._now = now or schedule.now
        self._rate: int | None = None
        self._rates = Rates()
        self.take_up(config)

    def take_up(self, config: Upstream) -> None:
        """Use another `max_rate` and `rates` from now on."""
        self._rates = Rates(config.rates, config.max_rate)
        self._look()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Change the rate by the time of the day while the context lasts."""
        keeping = asyncio.create_task(self._keep(), name="pace")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self._look()

    def _look(self) -> None:
        rate = self._rates.at(self._now())
        if rate != self._rate:
            self._rate = rate
            self._throttle.limit(rate)
            said = f"{format_size(rate)}/s at most" if rate else "as fast as they come"
            log.info("images are fetched %s from now on", said, extra=event("rate.changed", rate=rate))
