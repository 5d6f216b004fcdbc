"""Hashes stored images again while the mirror serves, to find rotten bytes before a client asks for them.

It is slow on purpose, and one image at a time among all processes of a store. Each image's directory says when it was
last verified, so after a restart the work continues with the one that has waited longest; one that was interrupted
starts over. A bad image is set aside, and fetched again at the next request.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mirror.common.clock import Clock, age
from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.model.errors import MirrorError
from mirror.model.notification import Kind, Notification, Notify, tell_nobody
from mirror.store.disk.store import DiskStore
from mirror.store.disk.verification import Verdict, Verified

log = logging.getLogger(__name__)

RATE = 50e6
"""Bytes per second: a few percent of a core, and little for any disk."""

LOOK = 60.0
"""The most seconds between two checks for what is due: somebody may have placed an image by hand."""

_NEVER = float("inf")

RETRY = 5.0
"""Seconds until another attempt after the store failed, an image changed, or another process was scrubbing."""


class Scrubber:
    """Verifies every image of `store` once in `interval` seconds, which may be changed."""

    def __init__(
        self,
        store: DiskStore,
        interval: float,
        metrics: Metrics,
        *,
        rate: float = RATE,
        clock: Clock | None = None,
        notify: Notify = tell_nobody,
    ) -> None:
        self._store = store
        self.interval = interval
        self._metrics = metrics
        self._rate = rate
        self._clock = clock or Clock()
        self._notify = notify
        self._tried: dict[str, float] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Scrub while the context lasts."""
        scrubbing = asyncio.create_task(self._run(), name="scrub")
        try:
            yield
        finally:
            scrubbing.cancel()
            await asyncio.gather(scrubbing, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                pause = await self._scrub_next()
            except MirrorError as error:  # the store's own error, which it has logged
                log.debug("scrubbing pauses: %s", error)
                pause = RETRY
            except Exception:
                log.exception("scrubbing pauses", extra=event("mirror.mistake"))
                pause = LOOK
            await asyncio.sleep(pause)

    async def _scrub_next(self) -> float:
        """Verify the image that is due first; return the seconds until another may be due."""
        pause = min(LOOK, self.interval)
        lock = await self._store.scrubbing()
        if lock is None:
            return min(pause, RETRY)
        try:
            wall, now = self._clock.wall(), self._clock.steady()
            waiting = {
                info.metadata.hash: age(info.verified_at.timestamp(), wall) if info.verified_at else _NEVER
                for info in await self._store.list()
            }
            self._tried = {each: when for each, when in self._tried.items() if each in waiting}
            if not waiting:
                return pause
            image_hash, waits = max(
                ((each, min(since, now - self._tried.get(each, -_NEVER))) for each, since in waiting.items()),
                key=lambda pair: pair[1],
            )
            due = self.interval - waits
            if due > 0:
                return min(pause, due)
            await self._scrub(image_hash)
        finally:
            os.close(lock)
        return 0.0

    async def _scrub(self, image_hash: str) -> None:
        self._tried[image_hash] = self._clock.steady()  # whatever the result: it must not keep the others waiting
        verified = await self._store.verify(image_hash, rate=self._rate)
        if verified.bad:
            self._metrics.scrubs.labels("bad").inc()
            self._metrics.unverified.labels("scrub").inc()
            bad = event("scrub.bad", image=image_hash)
            log.error("%s is bad: %s; the next request fetches it anew", image_hash, verified.detail, extra=bad)
            self._notify(quarantined(verified))
        elif verified.verdict is Verdict.GOOD:
            self._metrics.scrubs.labels("good").inc()
            log.info("%s was verified again", image_hash, extra=event("scrub.good", image=image_hash))
        else:
            self._tried[image_hash] += RETRY - self.interval
            log.debug("%s cannot be verified now: %s", image_hash, verified.detail)


def quarantined(verified: Verified) -> Notification:
    """Make the notification that a stored image is bad, and is not served any more."""
    said = f"{verified.image_hash} is bad: {verified.detail}"
    return Notification(Kind.IMAGE_QUARANTINED, said, verified.image_hash, details={"place": verified.place})
