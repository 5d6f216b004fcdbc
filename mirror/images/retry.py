"""The retry policy of a fill and of `get`: how long to wait before the next try, and when to give up."""

import random
from collections import Counter
from collections.abc import Callable

from mirror.model.source import Broken

BACKOFF = (0.25, 20.0)
"""Seconds before the first retry and at most; clients give up after 60 s without a byte."""


class RetryBudget:
    """How long a fill bears with a source that breaks: `seconds` without progress, or as many answers as failures say.

    After `count`, `delay` is how many seconds to wait before the next try; `spent` and `hopeless` say that there
    should be none, for want of time, or because the answer will be the same.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self.renew()

    def renew(self) -> None:
        """Begin anew: there was progress."""
        self._since = self._clock()
        self._failures = 0
        self._definitive: Counter[int] = Counter()
        self.delay, self.hopeless = 0.0, False

    def count(self, cut: Broken) -> None:
        """Take note of one more failure."""
        self._failures += 1
        if cut.definitive_after is not None:
            self._definitive[cut.definitive_after] += 1  # those of one kind: they have the same limit
            self.hopeless = self._definitive[cut.definitive_after] >= cut.definitive_after
        self.delay = backoff(self._failures, cut.retry_after)

    @property
    def spent(self) -> bool:
        """Whether the time would be over when the delay is."""
        return self._clock() + self.delay - self._since > self._seconds


def backoff(failures: int, retry_after: float | None) -> float:
    """Return the seconds to wait before the next try: exponential with jitter, at least what the source asked for."""
    first, most = BACKOFF
    delay = min(most, first * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
    return min(most, max(delay, retry_after or 0.0))
