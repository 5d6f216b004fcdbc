"""Indexes the archives of stored images in the background, as soon as they are stored.

That is: images that were just filled or imported, those that were there before, and those whose index is damaged or of
another version. One process of a mirror does it, one image at a time. Of several mirrors of one store, the one that
locks the image's directory does. When it is interrupted it begins again.
"""

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.common.tasks import let_end
from mirror.common.units import format_duration
from mirror.model.errors import MirrorError
from mirror.model.metadata import ImageMetadata
from mirror.model.notification import Kind, Notification, Notify, tell_nobody
from mirror.registry import indexer
from mirror.registry.catalog import Catalog, Entry
from mirror.registry.index import ArchiveIndex, NotAnArchive
from mirror.registry.inflater import NoZlib
from mirror.registry.progress import IndexProgress, Progress
from mirror.registry.tags import of_archive, of_metadata
from mirror.store.base import StoredImage

log = logging.getLogger(__name__)

LOOK = 1.0
"""Seconds between two looks for an image without an index, and between two notes of how far one is."""

RETRY = 60.0
"""Seconds until another attempt after one that failed for a reason that may pass."""


class Indexer:
    """Indexes what `catalog` has without an index, and notifies of each image that can be pulled now."""

    def __init__(
        self, catalog: Catalog, progress: IndexProgress, metrics: Metrics, notify: Notify = tell_nobody
    ) -> None:
        self._catalog = catalog
        self._progress = progress
        self._metrics = metrics
        self._notify = notify
        self._failed: dict[str, float] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Index while the context lasts."""
        indexing = asyncio.create_task(self._run(), name="index")
        try:
            yield
        finally:
            indexing.cancel()
            await asyncio.gather(indexing, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                while entry := await self._next():
                    await self._index(entry.info.metadata)
            except MirrorError as error:  # the store's own error, which it has logged
                log.debug("indexing pauses: %s", error)
            except Exception:
                log.exception("indexing pauses", extra=event("mirror.mistake"))
            await asyncio.sleep(LOOK)

    async def _next(self) -> Entry | None:
        """Return an image that has no index yet, the newest first."""
        now = asyncio.get_running_loop().time()
        self._failed = {each: when for each, when in self._failed.items() if now - when < RETRY}
        for entry in (await self._catalog.entries()).all:
            wanted = entry.state.is_open and entry.info.verified_at is not None
            if wanted and entry.info.metadata.hash not in self._failed:
                return entry
        return None

    async def _index(self, metadata: ImageMetadata) -> None:
        image_hash = metadata.hash
        self._failed[image_hash] = asyncio.get_running_loop().time()  # unless it ends well
        image = await self._catalog.disk.open(image_hash)
        if image is None:
            return
        with _locked(self._catalog.directory(image_hash)) as ours:
            if not ours:
                self._failed[image_hash] += LOOK - RETRY
                return
            began = time.monotonic()
            try:
                index = await self._build(image)
            except NotAnArchive as error:
                self._refused(image_hash, str(error))
            except (OSError, MemoryError, NoZlib) as error:
                if not (self._catalog.directory(image_hash) / "image").exists():
                    log.debug("%s was removed while it was indexed", image_hash)
                else:
                    self._fail(image_hash, error)
            else:
                self._ready(metadata, index, time.monotonic() - began)
                del self._failed[image_hash]
            finally:
                self._progress.forget(image_hash)
                self._catalog.expire()

    async def _build(self, image: StoredImage) -> ArchiveIndex:
        """Index an image in a thread of its own, and note how far it is. When cancelled, wait for the thread's end."""
        metadata, done, stop, began = image.metadata, _Done(), threading.Event(), time.monotonic()

        def build() -> ArchiveIndex:
            directory = self._catalog.directory(metadata.hash)
            return indexer.build(image.file.fd, directory, metadata, progress=done.note, stop=stop.is_set)

        building = asyncio.get_running_loop().run_in_executor(None, build)
        try:
            while True:
                self._progress.put(metadata.hash, done.progress(metadata.size, time.monotonic() - began))
                if (await asyncio.wait([building], timeout=LOOK))[0]:
                    return building.result()
        except asyncio.CancelledError:
            stop.set()
            await let_end(building)
            raise

    def _ready(self, metadata: ImageMetadata, index: ArchiveIndex, seconds: float) -> None:
        image_hash = metadata.hash
        self._metrics.indexes.labels("ready").inc()
        self._metrics.index_seconds.observe(seconds)
        for warning in index.warnings:
            log.warning("%s: %s", image_hash, warning, extra=event("index.warned", image=image_hash))
        ready = event("index.ready", image=image_hash)
        log.info("%s can be pulled: indexed in %s", image_hash, format_duration(seconds), extra=ready)
        tags = (*of_metadata(metadata), *of_archive(index.repo_tags))
        can = Notification.about(
            Kind.IMAGE_INDEXED, metadata, f"{image_hash} can be pulled", manifestDigest=index.manifest_digest
        )
        self._notify(replace(can, tags=tuple(dict.fromkeys(tags))))

    def _fail(self, image_hash: str, error: Exception) -> None:
        self._metrics.indexes.labels("failed").inc()
        log.warning(
            "%s cannot be indexed now: %s; another attempt follows in %s",
            image_hash,
            error,
            format_duration(RETRY),
            extra=event("index.failed", image=image_hash),
        )

    def _refused(self, image_hash: str, reason: str) -> None:
        self._metrics.indexes.labels("refused").inc()
        log.error("%s cannot be pulled: %s", image_hash, reason, extra=event("index.refused", image=image_hash))


class _Done:
    """How many bytes of an image are read; the thread that reads notes it."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, count: int) -> None:
        self._count = count

    def progress(self, size: int, seconds: float) -> Progress:
        """Return how much that is of an image, after so many seconds."""
        left = seconds / self._count * (size - self._count) if self._count else 0.0
        return Progress(min(1.0, self._count / size), max(0.0, left))


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Lock an image's directory within the context, unless another process has: then the value is False."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)
