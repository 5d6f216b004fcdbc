"""Records the traffic of the last 24 hours in intervals of ten minutes, in a file that survives restarts."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mirror.common.files import write_durably
from mirror.common.log import event
from mirror.model.status import Interval, Traffic

INTERVAL = 600
"""Seconds of an interval. Intervals begin at whole tens of minutes, so that every day begins with one."""

KEPT = 24 * 3600 // INTERVAL
"""How many intervals are kept."""

log = logging.getLogger(__name__)

_INTERVALS = TypeAdapter(list[Interval])


class History:
    """Computes the traffic of each interval from totals that only grow. `load` and `save` block."""

    def __init__(self, file: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._file = file
        self._now = now
        self._intervals: deque[Interval] = deque(maxlen=KEPT + 7)  # a day may have 25 hours
        self._last = Traffic()

    def load(self) -> None:
        """Read what an earlier process recorded."""
        try:
            self._intervals.extend(_INTERVALS.validate_json(self._file.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            log.warning("%s is left alone: %s", self._file, type(error).__name__, extra=event("note.ignored"))

    def save(self) -> None:
        """Save the intervals for the next process. If that fails, only the picture on the status page suffers."""
        try:
            write_durably(self._file, _INTERVALS.dump_json(list(self._intervals)))
        except OSError as error:
            log.debug("%s cannot be written: %s", self._file, error)

    def record(self, totals: Traffic) -> bool:
        """Add the traffic since the last call. Returns whether another interval has begun."""
        moved, self._last = _minus(totals, self._last), totals
        began = self._beginning(self._now())
        while self._intervals and self._intervals[-1].at > began:  # somebody has set the clock back
            moved = _plus(moved, self._intervals.pop().traffic)
        if self._intervals and self._intervals[-1].at == began:
            last = self._intervals[-1]
            self._intervals[-1] = Interval(last.at, last.seconds, _plus(last.traffic, moved))
            return False
        self._intervals.append(Interval(began, INTERVAL, moved))
        return True

    @property
    def intervals(self) -> Sequence[Interval]:
        """The last 24 hours without a gap, oldest first."""
        last = self._beginning(self._now())
        known = {interval.at: interval for interval in self._intervals}
        times = (last - timedelta(seconds=INTERVAL * ago) for ago in range(KEPT - 1, -1, -1))
        return [known.get(at) or Interval(at, INTERVAL, Traffic()) for at in times]

    @property
    def today(self) -> Traffic:
        """The traffic since midnight, local time."""
        today = self._now().astimezone().date()
        midnight = datetime.combine(
            today, time.min
        ).astimezone()  # with the UTC offset of midnight, which may differ from that of now
        total = Traffic()
        for interval in self._intervals:
            if interval.at >= midnight:
                total = _plus(total, interval.traffic)
        return total

    def _beginning(self, moment: datetime) -> datetime:
        seconds = int(moment.timestamp())
        return datetime.fromtimestamp(seconds - seconds % INTERVAL, UTC)


def _plus(one: Traffic, other: Traffic) -> Traffic:
    return Traffic(
        one.served + other.served,
        one.fetched + other.fetched,
        one.downloads + other.downloads,
        one.hits + other.hits,
    )


def _minus(one: Traffic, other: Traffic) -> Traffic:
    return _plus(one, Traffic(-other.served, -other.fetched, -other.downloads, -other.hits))
