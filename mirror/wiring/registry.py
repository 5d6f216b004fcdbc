"""Builds the registry of a mirror: what finds, indexes and offers the stored images that can be pulled."""

from concurrent.futures import Executor
from dataclasses import dataclass

from mirror.common.metrics import Metrics
from mirror.common.shared_memory import SharedNotes
from mirror.config import Config
from mirror.images.library import Library
from mirror.images.metadata_cache import MetadataCache
from mirror.model.notification import Notify, tell_nobody
from mirror.registry.catalog import Catalog
from mirror.registry.keeper import Indexer
from mirror.registry.progress import IndexProgress, shared_progress
from mirror.registry.pull import Pull
from mirror.store.base import StoreUnavailable
from mirror.store.disk.store import DiskStore

NO_DISK = (
    "this mirror keeps images in a bucket alone, where the layers in them cannot be read: nothing can be pulled here "
    "unless store.s3.local_copy = true"
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What finds images (`catalog`), says what a tag means now (`pull`), and indexes new ones (`indexer`)."""

    catalog: Catalog
    pull: Pull
    indexer: Indexer


@dataclass(frozen=True, slots=True)
class Registry:
    """The registry: its `repository`, and its `offer`, which is None where there is no disk with images."""

    repository: str
    offer: Offer | None

    async def degraded(self) -> list[str]:
        """Return in words which stored images cannot be pulled. That the store fails is told elsewhere."""
        if self.offer is None:
            return []
        try:
            entries = await self.offer.catalog.entries()
        except StoreUnavailable:
            return []
        return [
            f"docker pull: {entry.info.metadata.hash[:12]} cannot be served: {entry.state.reason}"
            for entry in entries.all
            if entry.index is None and not entry.state.is_open
        ]


def registry_of(
    config: Config,
    disk: DiskStore | None,
    metadata_cache: MetadataCache,
    library: Library,
    pool: Executor,
    metrics: Metrics,
    notes: SharedNotes | None,
    notify: Notify = tell_nobody,
) -> Registry | None:
    """Make the registry of a configuration; None when it is to have none."""
    if not config.registry.enabled:
        return None
    if disk is None:
        return Registry(config.registry.repository, None)
    progress = IndexProgress(notes or shared_progress())
    catalog = Catalog(disk, pool, progress)
    pull = Pull(catalog, metadata_cache, library, when_stored=config.upstream.rollover == "when_stored")
    return Registry(config.registry.repository, Offer(catalog, pull, Indexer(catalog, progress, metrics, notify)))
