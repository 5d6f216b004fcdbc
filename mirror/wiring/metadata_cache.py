"""Builds the metadata cache of a configuration: what of a mirror the commands need that only look at the store."""

from concurrent.futures import Executor

from mirror.common.clock import Clock
from mirror.config import Config
from mirror.images.metadata_cache import Ask, MetadataCache
from mirror.images.rollover import Bring, WhenStored
from mirror.model.notification import Notify, tell_nobody
from mirror.wiring.stores import Stores

SHOWN = "shown.json"
"""The file, in the store's directory, that says which image clients got last."""


async def loaded_metadata_cache(
    config: Config,
    ask: Ask | None,
    stores: Stores,
    pool: Executor,
    bring: Bring = lambda *_: None,
    notify: Notify = tell_nobody,
) -> MetadataCache:
    """Make the metadata cache and load what was known earlier. `bring` fetches a new image under `when_stored`."""
    rollover = None
    if config.upstream.rollover == "when_stored":
        rollover = WhenStored(
            stores.front,
            bring=bring,
            pause=config.upstream.metadata_ttl,
            note=config.store.path / SHOWN,
            pool=pool,
            notify=notify,
        )
    metadata_cache = MetadataCache(
        ask,
        stores.front,
        ttl=config.upstream.metadata_ttl,
        stale_if_error=config.upstream.stale_if_error,
        note=config.store.path / "current.json",
        pool=pool,
        rollover=rollover,
        shared=stores.note,
        clock=Clock(),
        notify=notify,
    )
    await metadata_cache.load()
    return metadata_cache
