"""Gives a request the body of an image: the stored image, a running fill, or a new fill.

Fills are tasks of the library, never of a request. For each hash there is at most one fill that stores what it
receives. When the store fails, images are passed through windows in memory; a client that comes too late for one window
begins another.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.common.shared_memory import SharedNotes
from mirror.common.tasks import BackgroundTasks
from mirror.images.fill import Fill
from mirror.images.fill_outcome import State
from mirror.images.fill_report import FillReport
from mirror.images.open_image import OpenImage
from mirror.images.pass_through import PassThrough
from mirror.images.store_health import StoreHealth
from mirror.images.wrong_bytes import TIMES, WrongBytes, shared_wrong_bytes
from mirror.model.cache_status import CacheStatus
from mirror.model.caller import Caller, OwnCredential
from mirror.model.errors import BadUpstream, MirrorError, NotFound
from mirror.model.metadata import ImageMetadata
from mirror.model.notification import Notify, tell_nobody
from mirror.model.source import CountingSource, NoSource, Source
from mirror.model.status import StoreState
from mirror.store.base import BlobStore, Body, Cut, Remote, StoredInfo, StoreUnavailable, Transfer
from mirror.store.memory import MemoryWindow
from mirror.upstream.client import Upstream
from mirror.upstream.image_source import ImageSource

log = logging.getLogger(__name__)

READY = 20.0
"""Seconds for a store to give the first bytes of what it has; after that the image comes another way, since clients
wait."""

AHEAD = 5.0
"""The same for a place that is nearer than the running fill."""


@dataclass(frozen=True, slots=True)
class _Running:
    fill: Fill
    source: ImageSource | NoSource
    task: asyncio.Task[None]
    began_at: datetime


class Library:
    """Finds images or begins to fetch them. `own` is the mirror's own credential, which is used before any client's.

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
        notify: Notify = tell_nobody,
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._own = own
        self._holdback = holdback
        self._retry = retry
        self._changed = changed
        self._metrics = metrics or Metrics()
        self._fills: dict[str, _Running] = {}
        self._read: set[str] = set()
        self._beginning: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._background = BackgroundTasks()
        self._health = StoreHealth(self._background.start, notify)
        self._pass_through = PassThrough(store, self._health)
        self._wrong = WrongBytes(wrong or shared_wrong_bytes())
        self._report = FillReport(self._metrics, self._health, self._wrong, changed, notify)

    def take_up(self, *, holdback: int, retry: float) -> None:
        """Use these for fills that begin from now on."""
        self._holdback, self._retry = holdback, retry

    @property
    def store_state(self) -> StoreState:
        """Return whether the store took an image the last time this process gave it one."""
        return self._health.state

    @property
    def fills(self) -> Sequence[tuple[Fill, datetime]]:
        """Return the fills that others may join now, and when each began."""
        return [(running.fill, running.began_at) for running in self._fills.values()]

    async def has(self, image_hash: str) -> bool:
        """Return whether that image is stored; False when the store fails."""
        try:
            return await self._store.has(image_hash)
        except StoreUnavailable as error:
            self._health.failed(error, lambda: self._readable(image_hash))
            return False

    async def stored(self, image_hash: str, span: tuple[int, int] | None = None) -> Body | None:
        """Return the stored image of that hash, or None. With `span`, its first bytes are fetched. No fill begins.

        None also when the store fails, or does not give them in time.
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
        """Return every stored image, newest first. Raises StoreUnavailable."""
        return await self._store.list()

    def serving(self, image_hash: str) -> None:
        """Note that the image is being served now, without making its client wait for that."""
        if image_hash in self._fills:  # it is not stored yet, so there is no place for the note
            self._read.add(image_hash)
        self._background.start(self._store.served(image_hash), f"served {image_hash}")

    async def open(
        self,
        metadata: ImageMetadata,
        caller: Caller,
        start: int = 0,
        stop: int | None = None,
        *,
        pass_through: bool = True,
    ) -> OpenImage:
        """Return the image's body for a reader from `start`; begin a fill when it is neither stored nor on its way.

        With `stop`, the bytes up to there will be read at once, so the first of them are fetched; a range that a fill
        has not reached is read from where the fill's bytes come from, if possible. A fill may show the caller's
        credential to upstream. Raises NotFound (there is no upstream), BadUpstream (upstream's bytes were wrong too
        often), StoreUnavailable (the store fails, and this image must not be passed through, or too many already are).
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
    ) -> OpenImage:
        if opened := await self._find(metadata, caller, start, span):
            return opened
        async with self._beginning.setdefault(metadata.hash, asyncio.Lock()):
            if opened := await self._find(metadata, caller, start, span):  # another request began it while we waited
                return opened
            if self._upstream is None and not await self._holds(metadata.hash):
                raise NotFound("this image is not in the mirror's store, and the mirror has no upstream to ask")
            self._refuse_doomed(metadata.hash)
            upstream = self._source(metadata, caller)
            begun = await self._begin(metadata, upstream, span, pass_through=pass_through)
            if not isinstance(begun, Transfer):
                return OpenImage(begun, CacheStatus.HIT)
            fill = Fill(
                metadata,
                CountingSource(begun.source, self._metrics.fetched),
                begun.journal,
                holdback=self._holdback,
                retry=self._retry,
                rescue=self._pass_through.rescue,
                resumed=self._metrics.resumes.inc,
                nameless=self._health.nameless is not None,
            )
            task = self._background.start(self._run(fill), f"fill {metadata.hash}")
            self._fills[metadata.hash] = _Running(fill, upstream, task, datetime.now(UTC))
            self._report.began(fill, caller)
            return OpenImage(fill, _how(fill, CacheStatus.STORED), fill)

    def bring(self, metadata: ImageMetadata, caller: Caller) -> None:
        """Begin a fill into the store in the background, or lend one that runs the caller's credential."""
        self._background.start(self._bring(metadata, caller), f"bring {metadata.hash}")

    def pause(self, fill: Fill) -> bool:
        """Stop a fill; the next one resumes from what it has. Return False when it is no longer running."""
        running = self._fills.get(fill.metadata.hash)
        if running is None or running.fill is not fill:
            return False
        del self._fills[fill.metadata.hash]  # from now on no client joins it
        return running.task.cancel()

    def renew(self) -> None:
        """Let running fills use the mirror's own credential as it is now, if upstream refuses the former one."""
        for running in self._fills.values():
            running.source.offer(self._own.lend(Caller(None, "pps-mirror")))

    async def stop(self) -> None:
        """Stop the fills that still run; their partials stay, to be resumed."""
        await self._background.stop()

    async def _bring(self, metadata: ImageMetadata, caller: Caller) -> None:
        try:
            await self.open(metadata, caller, pass_through=False)
        except MirrorError as error:
            failed = event("fill.not_begun", image=metadata.hash)
            log.warning("%s cannot be brought here now: %s", metadata.hash, error, extra=failed)

    async def _find(
        self, metadata: ImageMetadata, caller: Caller, start: int, span: tuple[int, int] | None
    ) -> OpenImage | None:
        running = self._fills.get(metadata.hash)
        if running and running.fill.state is not State.PUBLISHED and running.fill.reaches(start):
            running.source.offer(caller)
            return OpenImage(running.fill, _how(running.fill, CacheStatus.COLLAPSED), running.fill)
        if image := await self.stored(metadata.hash, span):
            return OpenImage(image, CacheStatus.HIT)
        return None

    async def _ahead(self, opened: OpenImage, fill: Fill, span: tuple[int, int]) -> OpenImage | None:
        """Return a body with `span`, which the fill has not reached, from where it is stored; None if nowhere."""
        try:
            async with asyncio.timeout(AHEAD):
                image = await self._store.ahead(fill.metadata.hash, fill.ended)
                if image is None:
                    return None
                await image.ready(*span)
        except (StoreUnavailable, Cut, TimeoutError) as error:
            log.debug("%s has to wait for its fill: %s", fill.metadata.hash, error)
            return None
        return OpenImage(image, CacheStatus.HIT, fill)

    async def _holds(self, image_hash: str) -> bool:
        """Return whether the store has such an image, maybe one that has to be verified again."""
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
            return self._pass_through.transfer(metadata, upstream)
        self._health.takes_images()
        return begun

    async def _readable(self, image_hash: str) -> None:
        """Read a byte of a stored image, if there is one. Raises StoreUnavailable, Cut."""
        image = await self._store.open(image_hash)
        if isinstance(image, Remote):
            try:
                await image.ready(0, 1)
            finally:
                await image.close()

    async def _run(self, fill: Fill) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await fill.run()
        finally:
            running = self._fills.get(fill.metadata.hash)
            if running is not None and running.fill is fill:  # otherwise a fill that others could join has replaced it
                del self._fills[fill.metadata.hash]
            read = fill.metadata.hash in self._read
            self._read.discard(fill.metadata.hash)
            self._report.ended(fill, clock() - began)
        if read and fill.failure is None:
            await self._store.served(fill.metadata.hash)

    def _refuse_doomed(self, image_hash: str) -> None:
        pause = self._wrong.pause(image_hash)
        if pause > 0:
            self._changed()  # the next request asks upstream whether there is another image by now
            raise BadUpstream(
                f"upstream sent wrong bytes for this image {TIMES} times; the mirror asks again in "
                f"{pause:.0f} s, or at once when upstream names another image",
                retry_after=max(1, round(pause)),
            )


def _passes(error: Exception) -> bool:
    return not isinstance(error, StoreUnavailable) or error.passes


def _words(error: Exception) -> StoreUnavailable:
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, TimeoutError):
        return StoreUnavailable("the mirror's store does not give the first bytes of an image in time")
    return StoreUnavailable(f"the mirror's store fails: {error}")


def _how(fill: Fill, status: CacheStatus) -> CacheStatus:
    if isinstance(fill.journal, MemoryWindow):
        return CacheStatus.BYPASS
    return status if fill.journal.ours else CacheStatus.COLLAPSED
