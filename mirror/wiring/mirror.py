"""Builds one mirror from a configuration, without listeners, and closes it in order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from yarl import URL

from mirror.access.policies import Access, CountingAccess, OpenAccess, TokensAccess, UpstreamAccess
from mirror.access.refusals import shared_refusals
from mirror.common.clock import Clock
from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.common.shared_memory import SharedNotes
from mirror.config import Config, load_token
from mirror.config.reloadable import Part, Ready, at_once
from mirror.images.library import Library
from mirror.images.metadata_cache import MetadataCache
from mirror.images.wrong_bytes import shared_wrong_bytes
from mirror.model.caller import Caller, OwnCredential
from mirror.model.errors import ConfigError
from mirror.model.metadata import ImageMetadata
from mirror.model.notification import Kind, Notification, Notify, tell_nobody
from mirror.model.status import Health, StoreState
from mirror.registry.progress import shared_progress
from mirror.store.base import StoreUnavailable
from mirror.upstream import loop_detection as loop
from mirror.upstream.client import Upstream
from mirror.upstream.proxies import Proxies
from mirror.upstream.rate_limit import Throttle
from mirror.upstream.rate_schedule import RateSchedule
from mirror.wiring.metadata_cache import SHOWN, loaded_metadata_cache
from mirror.wiring.notices import once_in_a_fleet, telling_of_evictions
from mirror.wiring.registry import Registry, registry_of
from mirror.wiring.stores import Stores, disk_store, open_stores

log = logging.getLogger(__name__)

BLOCKING_THREADS = 16
"""How many threads wait for the disk; appending to journals has its own threads."""


@dataclass(slots=True)
class Mirror:
    """The parts of one mirror, open and connected.

    `own` is its own credential; loops are found by `name` (`mirror.upstream.loop_detection`). `config` is the running
    configuration; `parts` apply another one. Code that builds more parts adds them. `notify` tells hooks what happened.
    """

    config: Config
    own: OwnCredential
    pool: ThreadPoolExecutor
    stores: Stores
    upstream: Upstream | None
    metadata_cache: MetadataCache
    access: Access
    library: Library
    metrics: Metrics
    name: str
    notify: Notify
    registry: Registry | None = None
    parts: list[Part] = field(default_factory=list)

    async def health(self, store: StoreState, stuck: str | None = None) -> Health:
        """Return whether the mirror can serve: from its store, or else from an upstream.

        `store` is the state of the store as the last process saw it that used it, be it a worker; `stuck` says why a
        worker's upload is stuck.
        """
        trouble = await self.stores.trouble()
        said = list(trouble.values())
        if stuck is not None and stuck not in said:
            said.append(stuck)
        if self.stores.bucket is not None and self.stores.bucket.full is not None:
            said.append(self.stores.bucket.full)
        if store.trouble is not None and not said:
            said.append(store.trouble)
        if self.registry is not None:
            said += await self.registry.degraded()
        if self.upstream is None and trouble.keys() == self.stores.places.keys() and not await self._disk_gives():
            return Health(reasons=said)
        return Health(degraded=said)

    async def _disk_gives(self) -> bool:
        """Return whether images can be read from the disk, even if it cannot take new ones."""
        try:
            return self.stores.disk is not None and len(await self.stores.disk.list()) > 0
        except StoreUnavailable:
            return False


@dataclass(frozen=True, slots=True)
class Shared:
    """Memory that the processes of a mirror share.

    It says which callers upstream refused, which images had wrong bytes, and how far those are that are being indexed.
    """

    refused: SharedNotes
    wrong: SharedNotes
    indexing: SharedNotes

    @classmethod
    def of(cls, descriptors: Sequence[int | None] = (None, None, None)) -> "Shared":
        """Open the memory of another process by its `descriptors`, or make new memory."""
        refused, wrong, indexing = descriptors
        return cls(shared_refusals(refused), shared_wrong_bytes(wrong), shared_progress(indexing))

    @property
    def descriptors(self) -> Sequence[int]:
        """The descriptors by which another process opens the memory."""
        return self.refused.descriptor, self.wrong.descriptor, self.indexing.descriptor


@asynccontextmanager
async def open_mirror(
    config: Config,
    environ: Mapping[str, str],
    *,
    needs_store: bool = True,
    metrics: Metrics | None = None,
    throttle: Throttle | None = None,
    shared: Shared | None = None,
    name: str | None = None,
    notify: Notify = tell_nobody,
) -> AsyncIterator[Mirror]:
    """Build a mirror without listeners. When the context ends its fills are stopped, and their partials kept.

    The caller runs the schedule of a `throttle` that it passes. With `shared` all processes know what one has learnt.
    A worker passes the `name` of its mirror.

    Raises ConfigError, or StoreUnavailable when it `needs_store` and the store's directory cannot be used.
    """
    own, metrics, name = OwnCredential(load_token(config, environ)), metrics or Metrics(), name or loop.new_name()
    url = config.upstream.url
    if url is None and config.auth.mode == "upstream":
        raise ConfigError(
            'auth.mode = "upstream" lets nobody in without upstream.url; set upstream.url, or auth.mode = "open"'
        )
    async with AsyncExitStack() as stack:
        pool = ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="blocking")
        stack.callback(pool.shutdown)
        stores = await stack.enter_async_context(
            open_stores(config, pool, telling_of_evictions(notify, metrics.evictions.inc))
        )
        store = stores.front
        try:
            await disk_store(config, pool).prepare()  # without a local copy it still holds the notes
        except StoreUnavailable as error:
            if needs_store:
                raise
            log.error("%s", error, extra=event("store.failing"))
            notify(Notification(Kind.STORE_FAILING, error.message))
        if throttle is None:
            throttle = Throttle()
            await stack.enter_async_context(RateSchedule(throttle, config.upstream).kept())
        upstream = None
        if url:
            upstream = await stack.enter_async_context(_upstream(config, url, environ, metrics, throttle, name))

        def bring(metadata: ImageMetadata, caller: Caller) -> None:
            library.bring(metadata, caller)

        metadata_cache = await loaded_metadata_cache(
            config,
            None if upstream is None else upstream.metadata,
            stores,
            pool,
            bring,
            once_in_a_fleet(stores.bucket, notify, lambda: bool(mirror.config.hooks)),
        )
        if config.upstream.rollover == "at_once":
            await asyncio.get_running_loop().run_in_executor(pool, _forget_shown, config)
        access: Access = OpenAccess(own)
        if config.auth.mode == "upstream":
            access = UpstreamAccess(
                metadata_cache,
                ttl=config.auth.ttl,
                stale_if_error=config.upstream.stale_if_error,
                note=config.store.path / "access.json",
                pool=pool,
                clock=Clock(),
                refused=shared.refused if shared else None,
            )
        elif config.auth.tokens_file is not None:
            access = TokensAccess(own, config.auth.tokens_file, pool)
        access = CountingAccess(access, metrics)
        await access.load()
        stack.push_async_callback(access.close)
        library = Library(
            store,
            upstream,
            own=own,
            holdback=config.store.holdback,
            retry=config.upstream.fill_retry,
            changed=metadata_cache.expire,
            metrics=metrics,
            wrong=shared.wrong if shared else None,
            notify=notify,
        )
        stack.push_async_callback(library.stop)
        notes = shared.indexing if shared else None
        registry = registry_of(config, stores.disk, metadata_cache, library, pool, metrics, notes, notify)
        mirror = Mirror(
            config, own, pool, stores, upstream, metadata_cache, access, library, metrics, name, notify, registry
        )
        mirror.parts += _parts(mirror, environ)
        yield mirror


def _parts(mirror: Mirror, environ: Mapping[str, str]) -> Sequence[Part]:
    """Return what applies another configuration."""
    upstream = mirror.upstream

    async def own(config: Config) -> Ready:
        token = await asyncio.get_running_loop().run_in_executor(mirror.pool, load_token, config, environ)

        def apply() -> None:
            mirror.own.take(token)
            if token is not None:
                mirror.library.renew()

        return Ready(apply, ("upstream.token_file",) if config.upstream.token_file else ())

    async def asked(config: Config) -> Ready:
        if upstream is None:
            return Ready(lambda: None)
        return await upstream.prepare(config.upstream, Proxies.of(config.upstream, environ))

    async def bucket(config: Config) -> Ready:
        if (found := mirror.stores.bucket) is None:
            return Ready(lambda: None)
        try:
            others = await found.find_anew()
        except StoreUnavailable as error:  # this must not keep the other parts from being reloaded
            log.warning("SIGHUP: %s; what was found before stays in use", error, extra=event("bucket.unfound"))
            return Ready(lambda: None)
        return Ready(found.forget, ("the bucket's credentials",) if others else ())

    def take_up(config: Config) -> None:
        mirror.config = config
        mirror.stores.take_up(config.store)
        mirror.metadata_cache.take_up(config.upstream)
        mirror.library.take_up(holdback=config.store.holdback, retry=config.upstream.fill_retry)

    return mirror.access.prepare, own, asked, bucket, at_once(take_up)


def _forget_shown(config: Config) -> None:
    """Remove the note of what clients got last: it is only kept under `when_stored`, and must not be used later."""
    try:
        (config.store.path / SHOWN).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", config.store.path / SHOWN, error, extra=event("note.unwritten"))


def _upstream(
    config: Config, url: str, environ: Mapping[str, str], metrics: Metrics, throttle: Throttle, name: str
) -> Upstream:
    proxies = Proxies.of(config.upstream, environ)
    if proxy := proxies.for_url(URL(url)):
        log.info("upstream is asked through %s", proxy, extra=event("upstream.proxied"))
    return Upstream(config.upstream, url, proxies, metrics, throttle, name)
