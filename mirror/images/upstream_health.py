"""Tracks whether upstream answers: while upstream is away, it gets one request, however many clients ask.

It is a circuit breaker (`mirror.common.circuit_breaker`) that understands upstream's answers, and records what
operators see of it.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

from mirror.common.circuit_breaker import Breaker, Question
from mirror.common.log import event
from mirror.model.errors import BadUpstream, MirrorError, Unavailable, UpstreamRefused, UpstreamTimeout
from mirror.model.notification import Kind, Notification, Notify, tell_nobody
from mirror.model.status import UpstreamState

HANGING = 1.0
"""Seconds without an answer after which upstream counts as hanging; while it does, it gets no more requests."""

log = logging.getLogger(__name__)


class Away(Exception):
    """Upstream gave no usable answer; `error` is what a client is told if nothing else can be done."""

    def __init__(self, error: MirrorError) -> None:
        super().__init__(str(error))
        self.error = error


class UpstreamHealth:
    """Tracks whether upstream answers. `now` returns the time of day, `clock` counts seconds."""

    def __init__(
        self,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        notify: Notify = tell_nobody,
    ) -> None:
        self.state = UpstreamState(None)
        self._notify = notify
        self._now = now
        self._clock = clock
        self._breaker: Breaker[MirrorError] = Breaker(clock, _pause)
        self._heard = -math.inf
        self._first: asyncio.Event | None = None  # set when the request that went first has ended

    @asynccontextmanager
    async def asking(self, *, waits: bool) -> AsyncIterator[Question]:
        """Ask upstream within the context. Raises Away when it is known to be away, or gives no usable answer.

        When there has been no answer for a while, one request goes first; those that may wait do so until it ends. An
        upstream that hung is not asked again for as long as it took to find that out; one that failed at once may be.
        """
        silent = self._clock() - self._heard > HANGING
        if waits and silent and self._first is not None and self._breaker.away is None:
            await self._first.wait()
        if (question := self._breaker.ask()) is None:
            assert self._breaker.away is not None  # noqa: S101 - else it would be asked
            raise Away(self._breaker.away.with_traceback(None))
        first = None
        if self._first is None:
            first = self._first = asyncio.Event()
        try:
            yield question
        except UpstreamRefused as refusal:
            self._answered(question)
            if refusal.status == 429:
                self.state = replace(self.state, reason="it answered 429, too many requests")
                raise Away(refusal) from None
            raise
        except (BadUpstream, Unavailable, UpstreamTimeout) as error:
            if self._breaker.failed(question, error):
                log.warning("upstream is away: %s", error, extra=event("upstream.away"))
                self._notify(Notification(Kind.UPSTREAM_AWAY, f"upstream is away: {error}"))
                self.state = replace(self.state, reachable=False, since=self._now(), reason=str(error))
            raise Away(error) from None
        else:
            self._answered(question)
        finally:
            self._breaker.dropped(question)
            if first is not None:
                self._first = None
                first.set()

    def _answered(self, question: Question) -> None:
        self._heard = self._clock()
        if self._breaker.answered(question):
            log.info("upstream is back", extra=event("upstream.back"))
        if not self.state.reachable:  # at first, too: an earlier process may have told that it is away
            self._notify(Notification(Kind.UPSTREAM_BACK, "upstream answers"))
        now = self._now()
        since = self.state.since if self.state.reachable else now
        self.state = UpstreamState(None, True, since, None, heard_at=now)


def _pause(took: float) -> float:
    """Return for how many seconds upstream is left alone after a request that took that long and failed."""
    return took if took > HANGING else 0.0
