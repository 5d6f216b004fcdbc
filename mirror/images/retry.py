"""The retry policy of a fill and of `get`: how long to wait before the next attempt, and when to give up."""

import random
from collections import Counter
from collections.abc import Callable

from mirror.model.source import Broken

BACKOFF = (0.25, 20.0)
"""Seconds before a retry, the first and the longest; clients give up after 60 s without a byte."""


class RetryBudget:
    """How long a fill keeps trying a source that breaks.

    It gives up after `seconds` without progress, or after as many answers of one kind as the failure itself says. After
    `count`, `delay` is how many seconds to wait before the next attempt; `spent` and `hopeless` say that there should
    be none, because time is up, or because the answer will be the same.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Start over, because there was progress."""
        self._since = self._clock()
        self._failures = 0
        self._definitive: Counter[int] = Counter()
        self.delay, self.hopeless = 0.0, False

    def count(self, cut: Broken) -> None:
        """Count one more failure."""
        self._failures += 1
        if cut.definitive_after is not None:
            self._definitive[cut.definitive_after] += 1  # failures of one kind: they have the same limit
            self.hopeless = self._definitive[cut.definitive_after] >= cut.definitive_after
        self.delay = backoff(self._failures, cut.retry_after)

    @property
    def spent(self) -> bool:
        """Return whether the time will be up when the delay is over."""
        return self._clock() + self.delay - self._since > self._seconds


def backoff(failures: int, retry_after: float | None) -> float:
    """Return the seconds to wait before a retry: exponential with jitter, at least what the source asked for."""
    first, most = BACKOFF
    delay = min(most, first * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
    return min(most, max(delay, retry_after or 0.0))
