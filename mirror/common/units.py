"""Converts sizes, durations, rates and times of day between what a person writes and numbers.

Parsers take whatever a configuration file or an environment variable holds, hence `object`, and raise `ValueError`
whose text says what is expected. It never quotes the value: the caller knows whether that may be shown.
"""

import math
import re
from dataclasses import dataclass
from datetime import time
from fractions import Fraction

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
"""Bytes."""

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
"""Seconds."""

MAX_SIZE = (1 << 63) - 1
"""Bytes: the largest file offset there is."""

MAX_DURATION = 36_500 * DAY
"""Seconds: a hundred years, so that a deadline always is a valid date."""

# Exact spelling: "Mb" and "mb" may well mean megabits, and a guess would be wrong by a factor of eight.
_SIZES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES |= {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40}
_DURATIONS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)}

_QUANTITY = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_WINDOW = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")

_SIZE_EXPECTED = "expected a size such as 64MiB, 14GB or 1024 (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB; none means bytes)"
_DURATION_EXPECTED = "expected a duration such as 30s, 5m or 7d (ms, s, m, h, d; none means seconds; at most 36500d)"
_RATE_EXPECTED = "expected a rate above zero such as 50MB/s or 512KiB/s"
_WINDOW_EXPECTED = 'expected two different times of day such as "22:00-06:00", from 00:00 to 23:59'


@dataclass(frozen=True, slots=True)
class Window:
    """A part of every day, local time: `start` (inclusive) to `end` (exclusive), past midnight when end < start."""

    start: time
    end: time

    def __str__(self) -> str:
        """Return it as a person writes it."""
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


def parse_size(value: object) -> int:
    """Return a size in bytes, 0 to `MAX_SIZE`, from "64MiB", "1.5 GB", "1024" or an int. A broken byte is cut off.

    Raises:
        ValueError: it is not a size.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())) and (match[2] or "B") in _SIZES:
        size = int(Fraction(match[1]) * _SIZES[match[2] or "B"])
    else:
        raise ValueError(_SIZE_EXPECTED)
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(_SIZE_EXPECTED)
    return size


def parse_duration(value: object) -> float:
    """Return a duration in seconds, 0 to `MAX_DURATION`, from "500ms", "30s", "1.5h", "7d" or a plain number.

    Raises:
        ValueError: it is not a duration.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds: float | Fraction = value
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())) and (match[2] or "s") in _DURATIONS:
        seconds = Fraction(match[1]) * _DURATIONS[match[2] or "s"]
    else:
        raise ValueError(_DURATION_EXPECTED)
    if not 0 <= seconds <= MAX_DURATION:  # false for nan as well
        raise ValueError(_DURATION_EXPECTED)
    return float(seconds)


def parse_rate(value: object) -> int:
    """Return a rate in bytes per second, 1 to `MAX_SIZE`, from "50MB/s".

    Raises:
        ValueError: it is not a rate, or it is zero.
    """
    if not isinstance(value, str) or not value.strip().endswith("/s"):
        raise ValueError(_RATE_EXPECTED)
    try:
        rate = parse_size(value.strip().removesuffix("/s"))
    except ValueError:
        raise ValueError(_RATE_EXPECTED) from None
    if rate == 0:
        raise ValueError(_RATE_EXPECTED)
    return rate


def parse_window(value: object) -> Window:
    """Return a part of the day from "22:00-06:00".

    Raises:
        ValueError: it is not a window, or it is empty.
    """
    match = _WINDOW.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(_WINDOW_EXPECTED)
    window = Window(time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4])))
    if window.start == window.end:
        raise ValueError(_WINDOW_EXPECTED)
    return window


def format_size(size: int) -> str:
    """Write a size in bytes (0 or more) for people, in the largest binary unit that fits: "13.2 GiB", "512 B"."""
    if size < KIB:
        return f"{size} B"
    value, unit = size / KIB, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1023.95:  # would otherwise be rounded to "1024.0"
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Write a duration in seconds (finite, 0 or more) for people: "350ms", "12.3s", "5m 12s", "3d 4h", "7d".

    From a minute on the two largest units are kept and the rest is cut off.
    """
    if seconds < 0.9995:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    if seconds < 59.95:
        return f"{seconds:.3g}s"
    rest = math.floor(seconds + 0.5)
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        parts.append((count, unit))
    first = next(index for index, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)
