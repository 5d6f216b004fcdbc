"""Says whether a window of the day is open, and when that changes.

Windows are in local time, so they move with daylight saving. In spring an hour of a window may be missing; in autumn an
hour that comes twice is in the window twice.
"""

from datetime import UTC, datetime, timedelta, tzinfo

from mirror.common.units import Window

MINUTE = timedelta(minutes=1)
LONGEST = 2 * 24 * 60
"""Minutes within which every window opens and closes, whatever the clocks do."""


def now() -> datetime:
    """Return the time of day, aware."""
    return datetime.now(UTC)


def is_open(window: Window, moment: datetime, zone: tzinfo | None = None) -> bool:
    """Return whether `moment` (aware) is in the window, in that zone (None: the system's)."""
    at = moment.astimezone(zone).time()
    if window.start < window.end:
        return window.start <= at < window.end
    return at >= window.start or at < window.end


def next_change(window: Window, moment: datetime, zone: tzinfo | None = None) -> datetime:
    """Return when the window opens or closes next; windows begin and end with a minute."""
    before = is_open(window, moment, zone)
    at = moment.astimezone(UTC).replace(second=0, microsecond=0)
    for _ in range(LONGEST):
        at += MINUTE
        if is_open(window, at, zone) != before:
            return at
    raise ValueError("a window that is never open, or always")
