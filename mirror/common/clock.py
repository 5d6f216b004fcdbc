"""Provides two clocks: the time of day, which can be set, and a steady one, which cannot.

Ages are measured by the steady clock. The time of day is for people, and for files that outlive a boot of the machine.
A time of day in a file that is in the future was written by a wrong clock, or the clock has been set back since: it
says nothing about how old a thing is.
"""

import time
from collections.abc import Callable
from pathlib import Path

_DIGITS = 4
"""Digits of a second: with this many, a time of day that was written and read again is exactly the same."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def _since_boot() -> float:
    """Return seconds since the boot, with those that the machine slept: a virtual machine may sleep for a month."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Both clocks: `wall` returns the time of day in seconds since the epoch, `steady` seconds of one that nobody sets.

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
        """Return the present moment of the steady clock, in seconds."""
        return round(self._steady(), _DIGITS)

    def offset(self) -> float:
        """Return what has to be added to a moment to get the time of day."""
        return round(self.wall() - self._steady(), _DIGITS)

    def moment(self, told: float) -> float | None:
        """Return the moment of a time of day; None when that is in the future."""
        age = self.wall() - told
        return round(self._steady() - age, _DIGITS) if age >= 0 else None


def age(told: float, now: float) -> float:
    """Return the seconds since a time of day; infinity when it is in the future, and so tells nothing."""
    return now - told if told <= now else float("inf")


def _boot_id() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
