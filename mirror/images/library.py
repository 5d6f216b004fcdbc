"""Give me a body for this image: the stored one, a fill that is running, or a new fill.

Fills are tasks of the library, never of a request. For one hash there is at most one that stores what it receives; when
the store fails images are passed through windows in memory, and who comes too late for one begins another.
"""

import asyncio
import hashlib
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.common.shared_memory import SharedNotes
from mirror.common.units import format_duration, format_size
from mirror.images.fill import OUT_OF_SPACE, Fill
from mirror.images.outcome import Reason, State
from mirror.images.store_health import StoreHealth
from mirror.images.wrong_bytes import TIMES, WrongBytes, shared_wrong_bytes
from mirror.model.caller import Caller, OwnCredential
from mirror.model.errors import BadUpstream, MirrorError, NotFound
from mirror.model.metadata import ImageMetadata
from mirror.model.source import CountingSource, NoSource, Origin, Source
from mirror.model.status import StoreState
from mirror.store.base import BlobStore, Body, Cut, Partial, Remote, StoredInfo, StoreUnavailable, Transfer, Unnamed
from mirror.store.memory import MemoryWindow
from mirror.upstream.client import Upstream
from mirror.upstream.image_source import ImageSource

log = logging.getLogger(__name__)

WINDOWS = 4
"""Images passed through at a time, at most: each takes memory (see `mirror.store.memory.SIZE`)."""

READY = 20.0
"""Seconds in which a store gives the first bytes of what it has, or the image is had another way: clients wait."""

AHEAD = 5.0
"""The same for a place that is nearer than the fill that runs."""

_OUTCOMES = {
    Reason.WRONG_BYTES: "wrong_bytes",
    Reason.CHANGED: "changed",
    Reason.REFUSED: "refused",
    Reason.GAVE_UP: "gave_up",
    Reason.STORE: "store_failed",
    Reason.ABANDONED: "abandoned",
    Reason.STOPPED: "stopped",
}


class Found(Enum):
    """How a request came by its body."""

    STORED = "stored"
    BEGAN = "began a fill"
    JOINED = "joined a fill"
    PASSED = "passed through"


@dataclass(frozen=True, slots=True)
class Opened:
    """A body to send, how it was come by, and the fill when there is one."""

    body: Body
    found: Found
    fill: Fill | None = None

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[None]:
        """Be one of the fill's clients meanwhile, and the reader of the body."""
        if self.fill is not None:
            self.fill.clients += 1
        try:
            yield
        finally:
            if self.fill is not None:
                self.fill.clients -= 1
            if isinstance(self.body, Remote):
                await self.body.close()

    async def answered(self) -> None:
        """Wait until bytes are clearly coming. Raises FillFailed."""
        if self.fill is not None and self.body is self.fill:
            await self.fill.answered()


@dataclass(frozen=True, slots=True)
class _Running:
    fill: Fill
    source: ImageSource | NoSource
    task: asyncio.Task[None]
    began_at: datetime


class Library:
    """All images that can be had. `own` is the mirror's own credential, used before any client's, if it has one.

    `changed` is called when upstream turned out to have another image than its metadata said. `wrong` is where the
    processes of a mirror count wrong bytes together.
    """

    def __init__(
        self,
        store: BlobStore,
        upstream: Upstream | None,
        *,
        own: OwnCredential,
        holdback: int,
        retry: float,
        changed: Callable[[], None],
        metrics: Metrics | None = None,
        wrong: SharedNotes | None = None,
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._own = own
        self._holdback = holdback
        self._retry = retry
        self._changed = changed
        self._metrics = metrics or Metrics()
        self._fills: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._read: set[str] = set()
        self._beginning = asyncio.Lock()
        self._windows: weakref.WeakSet[MemoryWindow] = weakref.WeakSet()
        self._health = StoreHealth(self._own_task)
        self._wrong = WrongBytes(wrong or shared_wrong_bytes())

    def take_up(self, *, holdback: int, retry: float) -> None:
        """From now on fills that begin have these."""
        self._holdback, self._retry = holdback, retry

    @property
    def store_state(self) -> StoreState:
        """Whether the store took an image when it was last asked to from here."""
        return self._health.state

    @property
    def fills(self) -> Sequence[tuple[Fill, datetime]]:
        """The fills that others may join now, and when each began."""
        return [(running.fill, running.began_at) for running in self._fills.values()]

    async def has(self, image_hash: str) -> bool:
        """Whether that image is stored. A store that fails has none."""
        try:
            return await self._store.has(image_hash)
        except StoreUnavailable as error:
            self._health.failed(error, lambda: self._readable(image_hash))
            return False

    async def stored(self, image_hash: str, span: tuple[int, int] | None = None) -> Body | None:
        """The stored image of that hash, with the first bytes of `span` at hand if it is given. Begins nothing.

        A store that fails, or does not give them in time, has none.
        """
        try:
            async with asyncio.timeout(READY):
                image = await self._store.open(image_hash)
                if isinstance(image, Remote) and span is not None:
                    await image.ready(*span)
        except Cut as error:
            log.debug("%s is stored no more: %s", image_hash, error)
            return None
        except (StoreUnavailable, TimeoutError) as error:
            self._health.failed(_words(error), lambda: self._readable(image_hash), reading=True)
            return None
        self._health.was_read()
        return image

    async def list(self) -> Sequence[StoredInfo]:
        """Every stored image, newest first. Raises StoreUnavailable."""
        return await self._store.list()

    def serving(self, image_hash: str) -> None:
        """Note that the image is served now, without making its client wait for that."""
        if image_hash in self._fills:  # there is nothing to note it at yet
            self._read.add(image_hash)
        self._own_task(self._store.served(image_hash), f"served {image_hash}")

    async def open(
        self,
        metadata: ImageMetadata,
        caller: Caller,
        start: int = 0,
        stop: int | None = None,
        *,
        pass_through: bool = True,
    ) -> Opened:
        """The image's body for a reader from `start`, beginning a fill when it is neither stored nor on its way.

        With `stop` the bytes up to there will be read at once, so the first of them are looked for; a range that a fill
        has not reached comes from where the fill's bytes do, if it can be had there. A fill may show the caller's
        credential to upstream. Raises NotFound (there is no upstream), BadUpstream (upstream's bytes were wrong too
        often), StoreUnavailable (the store fails, and this image must not be passed through, or too much is already).
        """
        span = None if stop is None else (start, stop)
        opened = await self._opened(metadata, caller, start, span, pass_through=pass_through)
        if opened.fill is not None and span is not None and start > opened.fill.position:
            return await self._ahead(opened, opened.fill, span) or opened
        return opened

    async def _opened(
        self,
        metadata: ImageMetadata,
        caller: Caller,
        start: int,
        span: tuple[int, int] | None,
        *,
        pass_through: bool,
    ) -> Opened:
        if opened := await self._find(metadata, caller, start, span):
            return opened
        async with self._beginning:
            if opened := await self._find(metadata, caller, start, span):  # somebody else began it while we waited
                return opened
            if self._upstream is None and not await self._holds(metadata.hash):
                raise NotFound("this image is not in the mirror's store, and the mirror has no upstream to ask")
            self._refuse_doomed(metadata.hash)
            upstream = self._source(metadata, caller)
            begun = await self._begin(metadata, upstream, span, pass_through=pass_through)
            if not isinstance(begun, Transfer):
                return Opened(begun, Found.STORED)
            journal = begun.journal
            fill = Fill(
                metadata,
                CountingSource(begun.source, self._metrics.fetched),
                journal,
                holdback=self._holdback,
                retry=self._retry,
                rescue=self._rescue,
                resumed=self._metrics.resumes.inc,
                nameless=self._health.nameless is not None,
            )
            task = self._own_task(self._run(fill), f"fill {metadata.hash}")
            self._fills[metadata.hash] = _Running(fill, upstream, task, datetime.now(UTC))
            how = f"began for {caller.who}" if journal.ours else "is another process's: following it"
            began = event("fill.began" if journal.ours else "fill.joined", image=metadata.hash, size=metadata.size)
            log.info("fill of %s (%s) %s", metadata.hash, format_size(metadata.size), how, extra=began)
            return Opened(fill, _how(fill, Found.BEGAN), fill)

    def bring(self, metadata: ImageMetadata, caller: Caller) -> None:
        """Begin a fill into the store in the background, or lend one that runs the caller's credential."""
        self._own_task(self._bring(metadata, caller), f"bring {metadata.hash}")

    def pause(self, fill: Fill) -> bool:
        """Stop a fill; what it has stays, for the next one to go on from. False when it does not run any more."""
        running = self._fills.get(fill.metadata.hash)
        if running is None or running.fill is not fill:
            return False
        del self._fills[fill.metadata.hash]  # from now on nobody joins it
        return running.task.cancel()

    def renew(self) -> None:
        """Let the fills that run use the mirror's own credential as it is now, when upstream refuses what it was."""
        for running in self._fills.values():
            running.source.offer(self._own.lend(Caller(None, "pps-mirror")))

    async def stop(self) -> None:
        """Stop the fills that still run; their partials stay, to be resumed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _bring(self, metadata: ImageMetadata, caller: Caller) -> None:
        try:
            await self.open(metadata, caller, pass_through=False)
        except MirrorError as error:
            failed = event("fill.not_begun", image=metadata.hash)
            log.warning("%s cannot be brought here now: %s", metadata.hash, error, extra=failed)

    async def _find(
        self, metadata: ImageMetadata, caller: Caller, start: int, span: tuple[int, int] | None
    ) -> Opened | None:
        running = self._fills.get(metadata.hash)
        if running and running.fill.state is not State.PUBLISHED and running.fill.reaches(start):
            running.source.offer(caller)
            return Opened(running.fill, _how(running.fill, Found.JOINED), running.fill)
        if image := await self.stored(metadata.hash, span):
            return Opened(image, Found.STORED)
        return None

    async def _ahead(self, opened: Opened, fill: Fill, span: tuple[int, int]) -> Opened | None:
        """The bytes of `span`, which the fill has not reached, from where they can be had now; None if they cannot."""
        try:
            async with asyncio.timeout(AHEAD):
                image = await self._store.ahead(fill.metadata.hash, fill.ended)
                if image is None:
                    return None
                await image.ready(*span)
        except (StoreUnavailable, Cut, TimeoutError) as error:
            log.debug("%s has to wait for its fill: %s", fill.metadata.hash, error)
            return None
        return Opened(image, Found.STORED, fill)

    async def _holds(self, image_hash: str) -> bool:
        """Whether the store has such an image, maybe one that has to be verified anew."""
        return any(info.metadata.hash == image_hash for info in await self._store.list())

    def _source(self, metadata: ImageMetadata, caller: Caller) -> ImageSource | NoSource:
        if self._upstream is None:
            return NoSource()
        source = ImageSource(self._upstream, metadata, self._own.lend(caller))
        source.offer(caller)
        return source

    async def _begin(
        self,
        metadata: ImageMetadata,
        upstream: Source,
        span: tuple[int, int] | None,
        *,
        pass_through: bool,
    ) -> Transfer | Body:
        try:
            begun = await self._store.begin(metadata, upstream)
            if isinstance(begun, Remote) and span is not None:
                async with asyncio.timeout(READY):
                    await begun.ready(*span)
        except (StoreUnavailable, Cut, TimeoutError) as error:
            trouble = _words(error)
            if not pass_through:
                raise trouble from error
            self._health.failed(trouble, self._store.probe if _passes(error) else None)
            if self._upstream is None:
                raise trouble from error
            return Transfer(self._window(metadata), self._store.nearest(metadata, upstream))
        self._health.takes_images()
        return begun

    async def _rescue(self, fill: Fill, error: OSError) -> Partial:
        """See `mirror.images.fill.Rescue`."""
        journal = fill.journal
        if isinstance(error, Unnamed):
            self._health.name_failed(error)
            return journal
        wanted = fill.metadata.size - journal.position
        if error.errno in OUT_OF_SPACE and await self._store.make_room(wanted):
            return journal
        look = self._store.probe if journal.file is None else None  # it lies in a bucket
        trouble = StoreUnavailable(f"the mirror's store fails: {error.strerror or type(error).__name__}")
        self._health.failed(trouble, look)
        return self._window(fill.metadata, journal.position, journal.digest())

    async def _readable(self, image_hash: str) -> None:
        """Read a byte of a stored image, if it is there. Raises StoreUnavailable, Cut."""
        image = await self._store.open(image_hash)
        if isinstance(image, Remote):
            try:
                await image.ready(0, 1)
            finally:
                await image.close()

    def _window(
        self, metadata: ImageMetadata, position: int = 0, digest: "hashlib._Hash | None" = None
    ) -> MemoryWindow:
        if len(self._windows) >= WINDOWS:
            raise StoreUnavailable(
                f"{self._health.state.trouble}; and {WINDOWS} images are passed through already, as many as can"
            )
        window = MemoryWindow(metadata, position, digest)
        self._windows.add(window)
        return window

    def _own_task(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, fill: Fill) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await fill.run()
        finally:
            running = self._fills.get(fill.metadata.hash)
            if running is not None and running.fill is fill:  # else it was overtaken by one that others could join
                del self._fills[fill.metadata.hash]
            read = fill.metadata.hash in self._read
            self._read.discard(fill.metadata.hash)
            self._conclude(fill, clock() - began)
        if read and fill.failure is None:
            await self._store.served(fill.metadata.hash)

    def _conclude(self, fill: Fill, seconds: float) -> None:
        image_hash = fill.metadata.hash
        self._metrics.fills.labels(_outcome(fill)).inc()
        if fill.failure is None:
            self._metrics.fill_seconds.observe(seconds)
            self._wrong.forget(image_hash)
            if not fill.passes_through:
                self._health.was_named()
            how = "verified and stored" if fill.journal.ours else "verified and stored by the other process"
            if fill.passes_through:
                how = "verified and passed through" + (", and cannot be stored" if fill.nameless else "")
            log.log(
                logging.ERROR if fill.nameless else logging.INFO,
                "fill of %s %s: %s in %s%s",
                image_hash,
                how,
                format_size(fill.metadata.size),
                format_duration(seconds),
                _resumed(fill.resumes),
                extra=event(f"fill.{_outcome(fill)}", image=image_hash, seconds=seconds, resumes=fill.resumes),
            )
            return
        log.log(
            logging.INFO if fill.failure.reason in {Reason.STOPPED, Reason.ABANDONED} else logging.ERROR,
            "fill of %s failed at byte %d: %s",
            image_hash,
            fill.position,
            fill.failure,
            extra=event(f"fill.{_outcome(fill)}", image=image_hash, position=fill.position),
        )
        if fill.failure.reason is Reason.WRONG_BYTES:
            self._metrics.unverified.labels("fill").inc()
        ours = (
            fill.journal.ours and fill.origin is Origin.UPSTREAM
        )  # else they lay in the store, or another counts them
        if fill.failure.reason is Reason.WRONG_BYTES and ours:
            self._wrong.count(image_hash)
        if fill.failure.reason in {Reason.WRONG_BYTES, Reason.CHANGED}:
            self._changed()

    def _refuse_doomed(self, image_hash: str) -> None:
        pause = self._wrong.pause(image_hash)
        if pause > 0:
            self._changed()  # the next request asks whether there is another image by now
            raise BadUpstream(
                f"upstream sent wrong bytes for this image {TIMES} times; the mirror asks again in "
                f"{pause:.0f} s, or at once when upstream names another image",
                retry_after=max(1, round(pause)),
            )


def _outcome(fill: Fill) -> str:
    """What became of a fill, in one word for machines."""
    if fill.failure is not None:
        return _OUTCOMES.get(fill.failure.reason, "other")
    if fill.passes_through:
        return "passed_through"
    return "published" if fill.journal.ours else "followed"


def _resumed(resumes: int) -> str:
    return f", resumed {resumes} time{'' if resumes == 1 else 's'}" if resumes else ""


def _passes(error: Exception) -> bool:
    return not isinstance(error, StoreUnavailable) or error.passes


def _words(error: Exception) -> StoreUnavailable:
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, TimeoutError):
        return StoreUnavailable("the mirror's store does not give the first bytes of an image in time")
    return StoreUnavailable(f"the mirror's store fails: {error}")


def _how(fill: Fill, found: Found) -> Found:
    if isinstance(fill.journal, MemoryWindow):
        return Found.PASSED
    return found if fill.journal.ours else Found.JOINED
