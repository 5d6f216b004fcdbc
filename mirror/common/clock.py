"""The two clocks: the time of day, which somebody may set, and a steady one, which nobody can.

How old something is, is measured by the steady clock. The time of day is for what a file keeps beyond the life of the
machine's boot, and for people. A time of day that a file tells, and that is yet to come, was written by a clock that
was wrong, or has been set back since: it says nothing about how old a thing is.
"""

import time
from collections.abc import Callable
from pathlib import Path

_DIGITS = 4
"""Of a second: then a time of day that was written and read again is the same to the last digit."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def _since_boot() -> float:
    """Seconds, also those that the machine slept: a virtual machine may be put aside for a month."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """`wall` gives the time of day in seconds since the epoch, `steady` seconds of a clock that nobody sets.

    The steady one begins when the machine boots, and is one for all its processes until it boots again: `boot` is the
    name of that time, empty when there is none.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _since_boot, boot: str | None = None
    ) -> None:
        self.wall = wall
        self._steady = steady
        self.boot = _boot_id() if boot is None else boot

    def steady(self) -> float:
        """The moment, in seconds."""
        return round(self._steady(), _DIGITS)

    def offset(self) -> float:
        """What to add to a moment to have the time of day."""
        return round(self.wall() - self._steady(), _DIGITS)

    def moment(self, told: float) -> float | None:
        """The moment of a time of day that was told; None when it is yet to come."""
        age = self.wall() - told
        return round(self._steady() - age, _DIGITS) if age >= 0 else None


def age(told: float, now: float) -> float:
    """Seconds since a time of day that was told; without end when it is yet to come, and so tells nothing."""
    return now - told if told <= now else float("inf")


def _boot_id() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
