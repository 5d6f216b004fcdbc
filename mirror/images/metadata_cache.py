"""Knows which image is current: caches upstream's metadata, refreshes it with one request, serves it in an outage.

It knows nothing of who may read it; `mirror.access.policies` does. Whether upstream is away is known by
`mirror.images.upstream_health`; what it said last is kept by `mirror.images.last_answer`.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from mirror.common.clock import Clock
from mirror.common.units import format_duration
from mirror.config import Upstream as UpstreamConfig
from mirror.images.last_answer import LastAnswer, SharedNote, time_of
from mirror.images.rollover import WhenStored, became_current
from mirror.images.upstream_health import Away, UpstreamHealth
from mirror.model.cache_status import CacheStatus
from mirror.model.caller import Caller
from mirror.model.errors import NotFound
from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note
from mirror.model.notification import Notify, tell_nobody
from mirror.model.status import UpstreamState
from mirror.store.base import BlobStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Current:
    """The current image's metadata and how it was obtained."""

    metadata: ImageMetadata
    status: CacheStatus


Ask = Callable[[Caller], Awaitable[ImageMetadata]]
"""Asks upstream for metadata with the caller's credential; see `mirror.upstream.client.Upstream.metadata`."""


class MetadataCache:
    """Caches upstream's current image. `ask` asks upstream; without it there is none.

    `ttl` and `stale_if_error` are in seconds; `note` is the last answer's file. `rollover` decides what clients get
    until a new image is stored; without it they get the new one at once. `shared` is where the mirrors of a fleet tell
    one another what upstream said.
    """

    def __init__(
        self,
        ask: Ask | None,
        store: BlobStore,
        *,
        ttl: float,
        stale_if_error: float,
        note: Path,
        pool: Executor,
        rollover: WhenStored | None = None,
        shared: SharedNote | None = None,
        clock: Clock,
        notify: Notify = tell_nobody,
    ) -> None:
        self._ask = ask
        self._store = store
        self._ttl = ttl
        self._stale_if_error = stale_if_error
        self._rollover = rollover
        self._notify = notify
        self._clock = clock
        self._health = UpstreamHealth(lambda: time_of(clock, clock.steady()), notify=notify)
        self._last = LastAnswer(note, pool, clock, shared=shared, timeless=ask is None)
        self._confirmed = -math.inf  # when upstream last told this process what it last told any process
        self._learnt = -math.inf  # when the request began that gave the answer we have
        self._asking = asyncio.Lock()

    def take_up(self, config: UpstreamConfig) -> None:
        """Use this `ttl` and `stale_if_error` from now on."""
        self._ttl, self._stale_if_error = config.metadata_ttl, config.stale_if_error
        if self._rollover is not None:
            self._rollover.pause = config.metadata_ttl

    @property
    def upstream_state(self) -> UpstreamState:
        """Return what is known of upstream, without a request."""
        return self._health.state

    async def last_answer(self) -> Note | None:
        """Return what upstream said last to any process of this store; None when it never did."""
        await self._last.read()
        return None if self._last.metadata is None else Note(self._last.metadata, self._last.said_at)

    async def load(self) -> None:
        """Load the last known answer of an earlier process."""
        await self._last.read()
        await self._last.read_shared()
        if self._rollover is not None:
            await self._rollover.load(self._last.metadata)

    def expire(self) -> None:
        """Ask upstream again at the next request: the last answer turned out to be outdated."""
        self._confirmed = -math.inf

    async def known_hash(self) -> str | None:
        """Return the hash of what clients get without naming an image, as far as is known, without a request."""
        known = self._last.metadata if self._ask is not None else await self._named_here()
        if self._rollover is not None:
            return await self._rollover.shown_hash(known)
        return known.hash if known else None

    async def imported(self, metadata: ImageMetadata) -> bool:
        """Make an imported image the current one, if there is no upstream that says what is; return whether it is now.

        It becomes current when the image named as current is older, or is not stored. If none is named, the newest is.
        """
        named = await self.last_answer()
        if self._ask is None and named is not None and named.metadata.hash != metadata.hash:
            stored = {info.metadata.hash for info in await self._store.list()}
            if metadata.created > named.metadata.created or named.metadata.hash not in stored:
                await self._learn(metadata)
        return await self.known_hash() == metadata.hash

    async def current(self, caller: Caller) -> Current:
        """Return the current image; ask upstream with the caller's credential when the last answer is too old.

        Raises UpstreamRefused (upstream's own answer), NotFound (nothing is current, and there is no upstream), or what
        `Away` carries when nothing is known that is recent enough.
        """
        if self._ask is None:
            if (named := await self._named_here()) is None:
                raise NotFound("no image is stored here yet, and the mirror has no upstream to ask; import one")
            return Current(named, CacheStatus.HIT)
        if fresh := self._fresh():
            return fresh
        # A request that came through another mirror does not wait for one under way: in a loop it would wait for
        # itself.
        async with contextlib.nullcontext() if caller.came_by else self._asking:
            if fresh := self._fresh():  # another request got the answer while we waited
                return fresh
            try:
                return await self.fetch(caller)
            except Away as away:
                return await self.last_known(away)

    async def shown(self, current: Current, caller: Caller | None) -> Current:
        """Return what clients get after this answer: its image, or the last one until the new one is stored.

        The new one is fetched in the background, with the caller's credential; without a caller no fetch begins.
        """
        if self._rollover is None:
            return current
        if self._ask is None or current.status is CacheStatus.STALE:
            caller = None
        newest = self._last.metadata or current.metadata  # which may be newer than `current`
        return replace(current, metadata=await self._rollover.show(newest, caller))

    async def fetch(self, caller: Caller) -> Current:
        """Ask upstream now, with the caller's credential. Raises UpstreamRefused (401, 403, 404) or Away.

        When upstream is away, it gets one request, however many clients ask (see `mirror.images.upstream_health`).
        """
        assert self._ask is not None  # noqa: S101 - callers asked
        async with self._health.asking(waits=not caller.came_by) as question:  # as in `current`
            metadata = await self._ask(caller)
        status = CacheStatus.MISS if self._last.metadata is None else CacheStatus.REFRESHED
        if question.began > self._learnt:  # otherwise a later request was answered sooner, maybe with a newer image
            self._learnt = question.began
            await self._learn(metadata)
        return Current(metadata, status)

    async def last_known(self, away: Away) -> Current:
        """Return what was current when upstream last answered any process of this store.

        Raises the error of `away` when that is too long ago.
        """
        await self._last.read()
        age = self._clock.steady() - self._last.said
        if self._last.metadata is None or age > self._stale_if_error:
            raise away.error
        log.debug("serving metadata that is %s old: %s", format_duration(age), away)
        return Current(self._last.metadata, CacheStatus.STALE)

    def _fresh(self) -> Current | None:
        if self._last.metadata is None or self._clock.steady() - self._confirmed >= self._ttl:
            return None
        return Current(self._last.metadata, CacheStatus.HIT)

    async def _learn(self, metadata: ImageMetadata) -> None:
        self._confirmed = self._clock.steady()
        before = self._last.metadata
        await self._last.write(metadata)
        if self._rollover is None and (before is None or before.hash != metadata.hash):
            self._notify(became_current(metadata))

    async def _named_here(self) -> ImageMetadata | None:
        """Return what is current where there is no upstream: what the last note names, else the newest image."""
        await self._last.read()  # an import, here or at another mirror, may have written it since
        await self._last.read_shared_once_in(self._ttl)
        if self._last.metadata is not None:
            return self._last.metadata
        images = await self._store.list()
        return images[0].metadata if images else None
