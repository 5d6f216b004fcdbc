"""Give me a body for this image: the stored one, a fill that is running, or a new fill.

Fills are tasks of the library, never of a request. For one hash there is at most one.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum

from cachetools import TTLCache

from mirror.caller import Caller
from mirror.errors import BadUpstream, NotFound
from mirror.fill import Fill, Reason
from mirror.metadata import ImageMetadata
from mirror.store.base import BlobStore, Body, StoredImage, StoredInfo
from mirror.units import format_duration, format_size
from mirror.upstream.client import Upstream
from mirror.upstream.image_source import ImageSource

log = logging.getLogger(__name__)

DOOMED_FAILURES = 5
DOOMED_WITHIN = 600.0
DOOMED_PAUSE = 60.0
"""After five times wrong bytes within ten minutes clients are told so, and upstream is asked once a minute only."""


class Found(Enum):
    """How a request came by its body."""

    STORED = "stored"
    BEGAN = "began a fill"
    JOINED = "joined a fill"


@dataclass(frozen=True, slots=True)
class Opened:
    """A body to send, how it was come by, and the fill when there is one."""

    body: Body
    found: Found
    fill: Fill | None = None


class Library:
    """All images that can be had. `own` is the mirror's own credential, used before any client's, if it has one.

    `changed` is called when upstream turned out to have another image than its metadata said.
    """

    def __init__(
        self,
        store: BlobStore,
        upstream: Upstream | None,
        *,
        own: Caller | None,
        holdback: int,
        retry: float,
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._own = own
        self._holdback = holdback
        self._retry = retry
        self._changed = changed
        self._fills: dict[str, tuple[Fill, ImageSource]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._beginning = asyncio.Lock()
        self._wrong: TTLCache[str, deque[float]] = TTLCache(maxsize=64, ttl=DOOMED_WITHIN)

    async def stored(self, image_hash: str) -> StoredImage | None:
        """The stored image of that hash. Begins nothing. Raises StoreUnavailable."""
        return await self._store.open(image_hash)

    async def list(self) -> Sequence[StoredInfo]:
        """Every stored image, newest first. Raises StoreUnavailable."""
        return await self._store.list()

    def serving(self, image_hash: str) -> None:
        """Note that the image is served now, without making its client wait for that."""
        self._own_task(self._store.served(image_hash), f"served {image_hash}")

    async def open(self, metadata: ImageMetadata, caller: Caller) -> Opened:
        """The image's body, beginning a fill when it is neither stored nor on its way.

        Raises StoreUnavailable, NotFound (there is no upstream), BadUpstream (upstream's bytes were wrong too often).
        """
        if opened := await self._find(metadata, caller):
            return opened
        async with self._beginning:
            if opened := await self._find(metadata, caller):  # somebody else began it while we waited
                return opened
            if self._upstream is None:
                raise NotFound("this image is not in the mirror's store, and the mirror has no upstream to ask")
            self._refuse_doomed(metadata.hash)
            source = ImageSource(self._upstream, metadata, self._own or caller)
            journal = await self._store.begin(metadata)
            if isinstance(journal, StoredImage):
                return Opened(journal, Found.STORED)
            fill = Fill(metadata, source, journal, holdback=self._holdback, retry=self._retry)
            self._fills[metadata.hash] = fill, source
            self._own_task(self._run(fill), f"fill {metadata.hash}")
            log.info("fill of %s (%s) began", metadata.hash, format_size(metadata.size))
            if self._own is not None:
                source.offer(caller)
            return Opened(fill, Found.BEGAN, fill)

    async def stop(self) -> None:
        """Stop the fills that still run; their partials stay, to be resumed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _find(self, metadata: ImageMetadata, caller: Caller) -> Opened | None:
        if running := self._fills.get(metadata.hash):
            fill, source = running
            source.offer(caller)
            return Opened(fill, Found.JOINED, fill)
        if image := await self._store.open(metadata.hash):
            return Opened(image, Found.STORED)
        return None

    def _own_task(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, fill: Fill) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            await fill.run()
        finally:
            del self._fills[fill.metadata.hash]
            self._conclude(fill, clock() - began)

    def _conclude(self, fill: Fill, seconds: float) -> None:
        image_hash = fill.metadata.hash
        if fill.failure is None:
            self._wrong.pop(image_hash, None)
            log.info(
                "fill of %s published: %s in %s, %d resumes",
                image_hash,
                format_size(fill.metadata.size),
                format_duration(seconds),
                fill.resumes,
            )
            return
        log.log(
            logging.INFO if fill.failure.reason is Reason.STOPPED else logging.ERROR,
            "fill of %s failed at byte %d: %s",
            image_hash,
            fill.position,
            fill.failure,
        )
        if fill.failure.reason is Reason.WRONG_BYTES:
            self._wrong[image_hash] = deque((*self._wrong.get(image_hash, ()), self._wrong.timer()), DOOMED_FAILURES)
        if fill.failure.reason in {Reason.WRONG_BYTES, Reason.CHANGED}:
            self._changed()

    def _refuse_doomed(self, image_hash: str) -> None:
        failures = self._wrong.get(image_hash, deque())
        if len(failures) < DOOMED_FAILURES:
            return
        pause = DOOMED_PAUSE - (self._wrong.timer() - failures[-1])
        if pause > 0:
            self._changed()  # the next request asks whether there is another image by now
            raise BadUpstream(
                f"upstream sent wrong bytes for this image {DOOMED_FAILURES} times; the mirror asks again in "
                f"{pause:.0f} s, or at once when upstream names another image",
                retry_after=max(1, round(pause)),
            )
