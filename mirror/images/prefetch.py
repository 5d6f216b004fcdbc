"""Fetches a new image before a client asks for it: at an interval, in a window of the day, or when an operator says so.

A fill that began here and runs beyond its window is paused, and continues in the next window; but not while a client
is waiting for it. A fill that a client began or an operator asked for is never paused.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from mirror.common import schedule
from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.common.units import format_duration, format_size
from mirror.config import TOKEN_VARIABLE, Prefetch
from mirror.images.fill import Fill
from mirror.images.fill_outcome import State
from mirror.images.library import Library
from mirror.images.metadata_cache import MetadataCache
from mirror.images.upstream_health import Away
from mirror.model.cache_status import CacheStatus
from mirror.model.caller import Caller, OwnCredential
from mirror.model.errors import BadUpstream, MirrorError, NotFound, UpstreamRefused
from mirror.model.status import Done, PrefetchState

FIRST = 5.0
"""Seconds after the start within which it first asks: not all mirrors of a site at once when the power comes back."""

RETRY = 300.0
"""The most seconds before a failed attempt is repeated: a night may have only one attempt planned."""

TICK = 1.0
"""Seconds between two checks of the clock, which may be set, and of the fill that may have to be paused."""

log = logging.getLogger(__name__)


class Prefetcher:
    """Brings the current image into the store, with the mirror's `own` credential. `now` returns an aware datetime."""

    def __init__(
        self,
        config: Prefetch,
        metadata_cache: MetadataCache,
        library: Library,
        own: OwnCredential,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._config = config
        self._metadata_cache = metadata_cache
        self._library = library
        self._own = own
        self._counter = metrics.prefetches
        self._now = now or schedule.now
        self._next_at: datetime | None = None
        self._begun: list[Fill] = []
        self._paused = False
        self._outcome = ""
        self._trouble: str | None = None
        self._asking = asyncio.Lock()

    def take_up(self, config: Prefetch) -> None:
        """Use this schedule from now on; ask soon, if prefetching was off."""
        if config.enabled and not self._config.enabled:
            self._next_at = None
        self._config = config

    @property
    def state(self) -> PrefetchState:
        """Return what it is doing now, in words."""
        return PrefetchState(self._config.enabled, self._words(), self._next_at if self._config.enabled else None)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look for new images while the context lasts, if that is enabled."""
        running = asyncio.create_task(self._run(), name="prefetch")
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def fetch_now(self) -> Done:
        """Fetch the current image if it is not stored, whatever the time; return what is done about it."""
        async with self._asking:
            done, _ = await self._bring("an operator")
        # it is wanted, so it must not be paused
        self._begun = [fill for fill in self._begun if fill.metadata.hash != done.image]
        return done

    async def _run(self) -> None:
        self._next_at = self._now() + timedelta(seconds=random.uniform(0, min(FIRST, self._config.interval)))  # noqa: S311 - no secret
        while True:
            try:
                if self._config.enabled:
                    await self._tick()
            except Exception:
                log.exception("prefetching pauses", extra=event("mirror.mistake"))
            await asyncio.sleep(TICK)

    async def _tick(self) -> None:
        now = self._now()
        if (window := self._config.window) is not None and not schedule.is_open(window, now):
            self._next_at = schedule.next_change(window, now)
            self._pause()
            return
        interval = timedelta(seconds=self._config.interval)
        if self._paused or self._next_at is None or not now < self._next_at <= now + interval:  # or the clock was set
            self._paused = False
            self._next_at = now + interval
            await self._look()

    async def _look(self) -> None:
        self._settle()
        async with self._asking:
            try:
                done, fill = await self._bring("prefetching")
            except MirrorError as error:
                self._counter.labels("failed").inc()
                self._outcome = f"the last look failed: {error}"
                self._next_at = self._now() + timedelta(seconds=min(RETRY, self._config.interval))
                if self._trouble != str(error):
                    self._trouble = str(error)
                    log.warning("prefetching fails: %s", error, extra=event("prefetch.failed"))
                return
        self._outcome = done.message
        self._trouble = None
        if fill is not None:
            self._begun.append(fill)

    async def _bring(self, who: str) -> tuple[Done, Fill | None]:
        """Begin to fetch the current image unless it is stored; return the image, and the fill if it began here."""
        caller = self._own.lend(Caller(None, "prefetch", who=who))
        try:
            current = await self._metadata_cache.fetch(caller)
        except Away as away:
            raise away.error from None
        except UpstreamRefused as refusal:
            raise _explained(refusal, caller) from None
        await self._metadata_cache.shown(current, None)  # so that the new image is reported
        metadata = current.metadata
        name = f"{metadata.hash[:12]} ({format_size(metadata.size)})"
        if await self._library.has(metadata.hash):
            self._counter.labels("nothing").inc()
            return Done(f"the current image {name} is stored", metadata.hash), None
        opened = await self._library.open(metadata, caller, pass_through=False)
        if opened.status is not CacheStatus.STORED:
            self._counter.labels("nothing").inc()
            return Done(f"the current image {name} is on its way already", metadata.hash), None
        self._counter.labels("began").inc()
        log.info("%s is fetched ahead", metadata.hash, extra=event("prefetch.began", image=metadata.hash))
        return Done(f"the current image {name} is being fetched", metadata.hash), opened.fill

    def _pause(self) -> None:
        """Stop what began here unless a client is waiting for it."""
        self._settle()
        for fill in tuple(self._begun):
            if fill.clients or fill.state is State.VERIFYING or not self._library.pause(fill):
                continue
            self._begun.remove(fill)
            self._paused = True
            at = f"{format_size(fill.position)} of {format_size(fill.metadata.size)}"
            self._outcome = f"{fill.metadata.hash[:12]} was paused at {at}"  # a client may have asked for it since
            log.info(
                "the window has ended: fill of %s is paused at %s",
                fill.metadata.hash,
                at,
                extra=event("prefetch.paused", image=fill.metadata.hash, position=fill.position),
            )

    def _settle(self) -> None:
        """Report, once, how the ended fills ended."""
        for fill in tuple(self._begun):
            if fill.state in {State.PUBLISHED, State.FAILED}:
                self._begun.remove(fill)
                name, failure = fill.metadata.hash[:12], fill.failure
                outcome = "is verified, and cannot be stored" if fill.passes_through else "is stored"
                self._outcome = f"fetching {name} failed: {failure.error}" if failure else f"{name} {outcome}"

    def _words(self) -> str:
        self._settle()
        if not self._config.enabled:
            return "off"
        window = self._config.window
        if window is not None and not schedule.is_open(window, self._now()):
            return f"waits for {window}" + (f"; {self._outcome}" if self._outcome else "")
        every = f"looks every {format_duration(self._config.interval)}"
        return f"{every}; {self._outcome}" if self._outcome else every


async def nothing_to_fetch() -> Done:
    """Replace `Prefetcher.fetch_now` where there is no upstream."""
    raise NotFound("there is nothing to fetch from: set upstream.url, or import an image")


def _explained(refusal: UpstreamRefused, caller: Caller) -> MirrorError:
    if refusal.status == 404:
        return BadUpstream("upstream has no image (it answered 404)")
    # No blank follows the word token: the log would take what comes after it for one.
    if caller.authorization is None:
        wanted = f"set upstream.token_file or {TOKEN_VARIABLE}"
        return BadUpstream(f"upstream answered {refusal.status}, for it wants a token: {wanted}")
    return BadUpstream(f"upstream answered {refusal.status}, for it refuses the mirror's own token")
