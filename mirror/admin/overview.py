"""Finds out the `Status` of the whole mirror on request, and writes its metrics in Prometheus' format."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from mirror import __version__
from mirror.admin.all_processes import AllMetrics, AllProcesses
from mirror.admin.audit import Audit
from mirror.admin.gauges import gauges
from mirror.admin.hooks.hooks import Hooks
from mirror.admin.traffic_history import History
from mirror.admin.worker_report import INTERVAL
from mirror.common.cached import Cached
from mirror.common.log import event
from mirror.model.status import AuditLine, CurrentImage, Health, ImageLine, PrefetchState, Room, Status
from mirror.process.workers import ClientProcesses
from mirror.registry.catalog import Entries
from mirror.store.base import StoredInfo, StoreUnavailable
from mirror.wiring.mirror import Mirror

FRESH = 0.9
"""Seconds for which a status is used again."""

STORES_FRESH = 2.0
"""Seconds for which the contents of a disk store are used again."""

BUCKET_FRESH = 15.0
"""The same with a bucket, which is further away."""

AUDITED = 20
"""How many records of what operators did are shown."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found in the stores."""

    health: Health = Health()  # noqa: RUF009 - frozen
    images: Sequence[StoredInfo] = ()
    rooms: Sequence[Room] = ()
    entries: Entries = Entries()  # noqa: RUF009 - frozen
    audit: Sequence[AuditLine] = ()


class Overview:
    """Finds out how the mirror is. `health` and `prefetch` tell what it cannot look up itself."""

    def __init__(
        self,
        mirror: Mirror,
        processes: AllProcesses,
        *,
        health: Callable[[], Awaitable[Health]],
        prefetch: Callable[[], PrefetchState],
        clients: ClientProcesses,
        hooks: Hooks,
    ) -> None:
        self._mirror = mirror
        self._processes = processes
        self._health = health
        self._prefetch = prefetch
        self._clients = clients
        self._hooks = hooks
        self._history = History(mirror.config.store.path / "history.json")
        self._audit = Audit(mirror.config.store.path)
        self._where = str(mirror.config.store.path.absolute())
        self._started_at = datetime.now(UTC)
        self._found = Cached(self._search, STORES_FRESH if mirror.stores.bucket is None else BUCKET_FRESH)
        self._status = Cached(self._look, FRESH)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(AllMetrics(processes, self._gauges))

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Measure the pace of fills and the traffic while the context lasts."""
        await self._blocking(self._history.load)
        watching = asyncio.create_task(self._watch(), name="watch")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._history.record(self._processes.traffic())
            await self._blocking(self._history.save)

    def expire(self) -> None:
        """Look everything up again at the next request, because something has changed."""
        self._found.expire()
        self._status.expire()

    async def status(self) -> Status:
        """Return how the mirror is, or was less than a second ago."""
        return await self._status.get()

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that `accept` prefers, Prometheus' or OpenMetrics, and its content type."""
        await self.status()
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    async def _watch(self) -> None:
        while True:
            try:
                self._processes.tick()
                if self._history.record(self._processes.traffic()):
                    await self._blocking(self._history.save)
            except Exception:
                log.exception("watching how the mirror is pauses", extra=event("mirror.mistake"))
            await asyncio.sleep(INTERVAL)

    async def _look(self) -> Status:
        mirror, found = self._mirror, await self._found.get()
        current = await self._current(found.images)
        return Status(
            version=__version__,
            now=datetime.now(UTC),
            started_at=self._started_at,
            health=found.health,
            current=current,
            upstream=replace(self._processes.upstream, url=mirror.config.upstream.url),
            fills=self._processes.fills,
            images=[_line(info, current, found.entries) for info in found.images],
            rooms=found.rooms,
            today=self._history.today,
            events=self._processes.events,
            history=self._history.intervals,
            prefetch=self._prefetch(),
            workers=self._clients.count,
            workers_missing=self._clients.missing,
            needs_token=mirror.config.admin.token_file is not None,
            hooks=await self._hooks.lines(),
            audit=found.audit,
        )

    async def _search(self) -> _Found:
        mirror, stores = self._mirror, self._mirror.stores
        health = await self._health()
        trouble = await stores.trouble()
        try:
            images = await stores.front.list()
        except StoreUnavailable:
            images = ()
        rooms = []
        if stores.disk is not None:
            where, count = self._where, sum("disk" in info.places for info in images)
            try:
                use = await stores.disk.use()
            except StoreUnavailable as error:
                rooms.append(Room("disk", where, 0, count, trouble=error.message))
            else:
                rooms.append(
                    Room("disk", where, use.used, count, use.limit, use.free, use.largest, trouble.get("disk"))
                )
        if stores.bucket is not None:
            where = self._mirror.config.store.s3.bucket or ""
            there = [info for info in images if "bucket" in info.places]
            used, limit, largest = sum(info.metadata.size for info in there), None, None
            with contextlib.suppress(StoreUnavailable):  # `trouble` tells that already
                if (bounded := await stores.bucket.use()) is not None:
                    used, limit, largest = bounded.used, bounded.limit, bounded.largest
            room = Room("bucket", where, used, len(there), limit, None, largest, trouble.get("bucket"))
            rooms.append(room)
        entries = Entries()
        if mirror.registry is not None and mirror.registry.offer is not None:
            with contextlib.suppress(StoreUnavailable):
                entries = await mirror.registry.offer.catalog.entries()
        audit = await asyncio.get_running_loop().run_in_executor(self._mirror.pool, self._audit.last, AUDITED)
        return _Found(health, images, rooms, entries, audit)

    async def _current(self, images: Sequence[StoredInfo]) -> CurrentImage | None:
        note = await self._mirror.metadata_cache.last_answer()
        try:
            shown = await self._mirror.metadata_cache.known_hash()
        except StoreUnavailable:
            shown = None
        stored = {info.metadata.hash: info.metadata for info in images}
        metadata = note.metadata if note and note.metadata.hash == shown else stored.get(shown or "")
        if metadata is None:
            return None
        return CurrentImage(
            metadata.hash,
            metadata.filename,
            metadata.size,
            metadata.created,
            note.fetched_at if note else None,
            metadata.hash in stored,
            note.metadata.hash if note and note.metadata.hash != shown else None,
        )

    async def _blocking(self, function: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._mirror.pool, function)

    def _gauges(self) -> Iterator[Metric]:
        return iter(()) if self._status.last is None else gauges(self._status.last, self._mirror.config)


def _line(info: StoredInfo, current: CurrentImage | None, entries: Entries) -> ImageLine:
    metadata = info.metadata
    entry, is_current = entries.by_hash(metadata.hash), current is not None and current.hash == metadata.hash
    return ImageLine(
        metadata.hash,
        metadata.filename,
        metadata.size,
        metadata.created,
        info.stored_at,
        info.last_served_at,
        info.verified_at,
        info.pinned,
        is_current,
        info.places,
        entries.tags_of(metadata.hash, current=is_current),
        entry.state if entry else None,
    )
