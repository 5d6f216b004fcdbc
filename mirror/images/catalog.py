"""What is current: upstream's metadata, remembered for a while, refreshed once for all, stale while upstream is away.

It knows nothing of who may read it; `mirror.access.policies` does. The last known answer is kept in `current.json`, so
that a mirror that starts while upstream is away still knows what to serve.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from mirror.common.clock import Clock
from mirror.common.files import write_durably
from mirror.common.log import event
from mirror.common.units import format_duration
from mirror.config import Upstream as UpstreamConfig
from mirror.images.rollover import WhenStored
from mirror.model.cache_status import CacheStatus
from mirror.model.caller import Caller
from mirror.model.errors import BadUpstream, MirrorError, NotFound, Unavailable, UpstreamRefused, UpstreamTimeout
from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note
from mirror.model.status import UpstreamState
from mirror.store.base import BlobStore
from mirror.upstream.client import Upstream

HANGING = 1.0
"""Seconds without an answer after which upstream counts as hanging, and is spared while it does."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Current:
    """The current image's metadata and how it was come by."""

    metadata: ImageMetadata
    status: CacheStatus


class Away(Exception):
    """Upstream gave no usable answer; `error` is what a client is told when nothing else can be done."""

    def __init__(self, error: MirrorError) -> None:
        super().__init__(str(error))
        self.error = error


class SharedNote(Protocol):
    """Where replicas keep the last known answer for one another."""

    async def read(self) -> Note | None:
        """What is there; None when there is nothing, or the place cannot be reached."""

    def write(self, note: Note) -> None:
        """Put it there when that is possible, in the background."""


class Catalog:
    """Upstream's current image. `ttl` and `stale_if_error` in seconds; `note` is the file of the last known answer.

    `rollover` says what clients get meanwhile when a new image is to be stored first; without it they get it at once.
    `shared` is where replicas tell one another.
    """

    def __init__(
        self,
        upstream: Upstream | None,
        store: BlobStore,
        *,
        ttl: float,
        stale_if_error: float,
        note: Path,
        pool: Executor,
        rollover: WhenStored | None = None,
        shared: SharedNote | None = None,
        clock: Clock,
    ) -> None:
        self._upstream = upstream
        self._store = store
        self._ttl = ttl
        self._stale_if_error = stale_if_error
        self._note = note
        self._pool = pool
        self._rollover = rollover
        self._shared = shared
        self._clock = clock
        self._known: ImageMetadata | None = None
        self._said = self._confirmed = -math.inf  # moments: upstream said what is known, to whomever; and to us
        self._away: MirrorError | None = None
        self._away_until = 0.0
        self._probe: asyncio.Event | None = None
        self._heard = self._learnt = self._looked = -math.inf
        self._trouble: str | None = None
        self._asking = asyncio.Lock()
        self._state = UpstreamState(None)

    def take_up(self, config: UpstreamConfig) -> None:
        """From now on these are `ttl` and `stale_if_error`."""
        self._ttl, self._stale_if_error = config.metadata_ttl, config.stale_if_error
        if self._rollover is not None:
            self._rollover.pause = config.metadata_ttl

    @property
    def upstream_state(self) -> UpstreamState:
        """What is known of upstream, without asking it."""
        return self._state

    async def last_answer(self) -> Note | None:
        """What upstream said last, to any process of this store; None when it never did."""
        await self._take_up()
        return None if self._known is None else Note(self._known, self._time(self._said))

    async def load(self) -> None:
        """Take up the last known answer of an earlier process."""
        await self._take_up()
        if self._shared is not None:
            self._believe(await self._shared.read())
        if self._rollover is not None:
            await self._rollover.load(self._known)

    async def _take_up(self) -> None:
        """Learn what the file says, if that is later than what we know."""
        note, trouble = None, None
        try:
            note = Note.parse(await self._blocking(self._note.read_bytes))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            trouble = str(error)
        if note is not None and note.fetched_at is None:
            trouble = "it does not tell when upstream said so"
        if trouble is not None and trouble != self._trouble:  # once, however often somebody asks
            log.warning("%s is left alone: %s", self._note, trouble, extra=event("note.ignored"))
        self._trouble = trouble
        self._believe(note)

    def _believe(self, note: Note | None) -> None:
        """Know what a note says, if that is later than what we know.

        One of a time that is yet to come tells nothing of its age, so it never stands in for upstream. Where there is
        no upstream nothing ages, and it names what is current all the same.
        """
        if note is None or note.fetched_at is None:
            return
        said = self._clock.moment(note.fetched_at.timestamp())
        if said is None and self._upstream is None:
            said = self._clock.steady()
        if said is not None and said > self._said:
            self._known, self._said = note.metadata, said

    def expire(self) -> None:
        """Ask upstream anew at the next request: the last answer turned out to be outdated."""
        self._confirmed = -math.inf

    async def known_hash(self) -> str | None:
        """The hash of what clients get who name none, as far as is known, without asking anybody."""
        known = self._known if self._upstream is not None else await self._named_here()
        if self._rollover is not None:
            return await self._rollover.shown_hash(known)
        return known.hash if known else None

    async def imported(self, metadata: ImageMetadata) -> bool:
        """Let a stored image be the current one when it was carried here, and no upstream says what is; whether it is.

        It becomes that when what is current by name is older, or is not stored. Without such a name the newest is.
        """
        named = await self.last_answer()
        if self._upstream is None and named is not None and named.metadata.hash != metadata.hash:
            stored = {info.metadata.hash for info in await self._store.list()}
            if metadata.created > named.metadata.created or named.metadata.hash not in stored:
                await self._learn(metadata)
        return await self.known_hash() == metadata.hash

    async def current(self, caller: Caller) -> Current:
        """The current image, asking upstream with the caller's credential when the last answer is too old.

        Raises UpstreamRefused (upstream's own answer), NotFound (nothing is current, and there is no upstream), or what
        `Away` carries when nothing is known that is recent enough.
        """
        if self._upstream is None:
            if (named := await self._named_here()) is None:
                raise NotFound("no image is stored here yet, and the mirror has no upstream to ask; import one")
            return Current(named, CacheStatus.HIT)
        if fresh := self._fresh():
            return fresh
        # Who comes by another mirror does not wait for questions under way: in a loop they wait for its answer.
        async with contextlib.nullcontext() if caller.came_by else self._asking:
            if fresh := self._fresh():  # somebody asked while we waited
                return fresh
            try:
                return await self.fetch(caller)
            except Away as away:
                return await self.last_known(away)

    async def shown(self, current: Current, caller: Caller | None) -> Current:
        """What clients get when that is what upstream says: that, or the last image until the new one is stored.

        The new one is brought here meanwhile, with the caller's credential; nothing is begun without a caller.
        """
        if self._rollover is None:
            return current
        if self._upstream is None or current.status is CacheStatus.STALE:
            caller = None
        newest = self._known or current.metadata  # which may have been learnt after `current`
        return replace(current, metadata=await self._rollover.show(newest, caller))

    async def fetch(self, caller: Caller) -> Current:
        """Ask upstream now, with the caller's credential. Raises UpstreamRefused (401, 403, 404) or Away.

        When upstream has not been heard for a while, one question goes first and the others wait for what becomes of
        it: one that is away costs one question, however many ask.
        """
        assert self._upstream is not None  # noqa: S101 - callers asked
        clock = asyncio.get_running_loop().time
        patient = not caller.came_by  # as in `current`
        if self._away is None and self._probe is not None and clock() - self._heard > HANGING and patient:
            await self._probe.wait()
        if self._away is not None and (self._probe is not None or clock() < self._away_until):
            raise Away(self._away.with_traceback(None))
        probe = None
        if self._probe is None:
            probe = self._probe = asyncio.Event()
        began = clock()
        try:
            metadata = await self._upstream.metadata(caller)
        except UpstreamRefused as refusal:
            self._is_back()
            if refusal.status == 429:
                self._state = replace(self._state, reason="it answered 429, too many requests")
                raise Away(refusal) from None
            raise
        except (BadUpstream, Unavailable, UpstreamTimeout) as error:
            if self._away is None:
                log.warning("upstream is away: %s", error, extra=event("upstream.away"))
                self._state = replace(self._state, reachable=False, since=self._time(), reason=str(error))
            # Who hangs is not asked again for as long as it took to find out; who fails at once may be asked at once.
            took = clock() - began
            self._away, self._away_until = error, clock() + (took if took > HANGING else 0.0)
            raise Away(error) from None
        finally:
            if probe is not None:
                self._probe = None
                probe.set()
        self._is_back()
        status = CacheStatus.MISS if self._known is None else CacheStatus.REFRESHED
        if began > self._learnt:  # else a later question was answered sooner, maybe with a newer image
            self._learnt = began
            await self._learn(metadata)
        return Current(metadata, status)

    def _is_back(self) -> None:
        self._heard = asyncio.get_running_loop().time()
        if self._away is not None:
            log.info("upstream is back", extra=event("upstream.back"))
            self._away = None
        now = self._time()
        since = self._state.since if self._state.reachable else now
        self._state = UpstreamState(None, True, since, None, heard_at=now)

    async def last_known(self, away: Away) -> Current:
        """What was current when upstream was last heard, by any process of this store.

        Raises the error of `away` when that is too long ago.
        """
        await self._take_up()
        age = self._clock.steady() - self._said
        if self._known is None or age > self._stale_if_error:
            raise away.error
        log.debug("serving metadata that is %s old: %s", format_duration(age), away)
        return Current(self._known, CacheStatus.STALE)

    def _fresh(self) -> Current | None:
        if self._known is None or self._clock.steady() - self._confirmed >= self._ttl:
            return None
        return Current(self._known, CacheStatus.HIT)

    async def _learn(self, metadata: ImageMetadata) -> None:
        if self._known is None or self._known.hash != metadata.hash:
            name = metadata.filename.encode("ascii", "replace").decode()
            log.info("current image is %s (%s)", metadata.hash, name, extra=event("image.current", image=metadata.hash))
        self._known = metadata
        self._said = self._confirmed = self._clock.steady()
        note = Note(metadata, self._time())
        try:
            await self._blocking(lambda: write_durably(self._note, note.to_bytes()))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._note, error, extra=event("note.unwritten"))
        if self._shared is not None:
            self._shared.write(note)

    async def _named_here(self) -> ImageMetadata | None:
        """What is current where no upstream says so: what the last note names, or else the newest stored image."""
        await self._take_up()  # an import may have written it since, here or at another replica
        clock = asyncio.get_running_loop().time
        if self._shared is not None and clock() - self._looked >= self._ttl:
            self._looked = clock()
            self._believe(await self._shared.read())
        if self._known is not None:
            return self._known
        images = await self._store.list()
        return images[0].metadata if images else None

    def _time(self, moment: float | None = None) -> datetime:
        """The time of day of a moment, or now, by the clock as it is set."""
        return datetime.fromtimestamp(self._clock.offset() + (self._clock.steady() if moment is None else moment), UTC)

    async def _blocking(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)
