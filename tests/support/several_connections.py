"""Lets a mirror use several connections after a few bytes of any image, however quick the line is."""

import math
from collections.abc import Mapping

MODULE = "mirror.common.several_ranges"


def eager(window: int) -> Mapping[str, float]:
    """Constants of that module, by name: all that is asked for at once fits into `window` bytes."""
    return {
        "WINDOW": window,
        "WATCH": 0.0,
        "FLAT": math.inf,
        "WAITING": 0.0,
        "BUSY": math.inf,
        "LEFT": 0.0,
        "LEAD": 0.0,
        "GAIN": 0.0,
    }
