"""One mirror, wired from a configuration. `mirror.serve.main` puts listeners before it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
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
from mirror.images.catalog import Catalog
from mirror.images.library import Library
from mirror.images.rollover import Bring, WhenStored
from mirror.images.wrong_bytes import shared_wrong_bytes
from mirror.model.caller import Caller, OwnCredential
from mirror.model.errors import ConfigError
from mirror.model.metadata import ImageMetadata
from mirror.model.status import Health, StoreState
from mirror.store.base import StoreUnavailable
from mirror.upstream import loop_detection as loop
from mirror.upstream.client import Upstream
from mirror.upstream.proxies import Proxies
from mirror.upstream.rate_limit import Throttle
from mirror.upstream.rate_schedule import RateSchedule
from mirror.wiring.stores import Stores, disk_store, open_stores

log = logging.getLogger(__name__)

SHOWN = "shown.json"
"""The note of what clients got last, in the store's directory."""

BLOCKING_THREADS = 16
"""Threads for what waits for the disk; appending to journals has its own."""


@dataclass(slots=True)
class Mirror:
    """The rooms of one mirror, open.

    `own` is its own credential, `name` what loops are found by (`mirror.upstream.loop_detection`). `config` is what
    holds now; `parts` take up another one, and whoever builds more of them adds them.
    """

    config: Config
    own: OwnCredential
    pool: ThreadPoolExecutor
    stores: Stores
    upstream: Upstream | None
    catalog: Catalog
    access: Access
    library: Library
    metrics: Metrics
    name: str
    parts: list[Part] = field(default_factory=list)

    async def health(self, store: StoreState, stuck: str | None = None) -> Health:
        """Whether the mirror can serve: what is stored and can be read; and else what it can have from an upstream.

        `store` is what the process found that asked the store last to take an image: this one, or a worker; `stuck` is
        what keeps a worker's upload from going on.
        """
        trouble = await self.stores.trouble()
        said = list(trouble.values())
        if stuck is not None and stuck not in said:
            said.append(stuck)
        if self.stores.bucket is not None and self.stores.bucket.full is not None:
            said.append(self.stores.bucket.full)
        if store.trouble is not None and not said:
            said.append(store.trouble)
        if self.upstream is None and trouble.keys() == self.stores.places.keys() and not await self._disk_gives():
            return Health(reasons=said)
        return Health(degraded=said)

    async def _disk_gives(self) -> bool:
        """Whether the disk's images can be read, though it may take none."""
        try:
            return self.stores.disk is not None and len(await self.stores.disk.list()) > 0
        except StoreUnavailable:
            return False


@dataclass(frozen=True, slots=True)
class Shared:
    """What the processes of a mirror tell one another at once: whom upstream has refused, whose bytes were wrong."""

    refused: SharedNotes
    wrong: SharedNotes

    @classmethod
    def of(cls, descriptors: Sequence[int | None] = (None, None)) -> "Shared":
        """That of another process by its `descriptors`, or a new one."""
        refused, wrong = descriptors
        return cls(shared_refusals(refused), shared_wrong_bytes(wrong))

    @property
    def descriptors(self) -> Sequence[int]:
        """What another process shares it by."""
        return self.refused.descriptor, self.wrong.descriptor


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
) -> AsyncIterator[Mirror]:
    """Build a mirror without listeners; its fills are stopped and their partials kept on the way out.

    Somebody else keeps the pace of a `throttle` that is given. With `shared` all processes know what one has learnt.
    `name` is that of the mirror whose worker this is.

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
        stores = await stack.enter_async_context(open_stores(config, pool, metrics.evictions.inc))
        store = stores.front
        try:
            await disk_store(config, pool).prepare()  # without a local copy, the place of notes
        except StoreUnavailable as error:
            if needs_store:
                raise
            log.error("%s", error, extra=event("store.failing"))
        if throttle is None:
            throttle = Throttle()
            await stack.enter_async_context(RateSchedule(throttle, config.upstream).kept())
        upstream = None
        if url:
            upstream = await stack.enter_async_context(_upstream(config, url, environ, metrics, throttle, name))

        def bring(metadata: ImageMetadata, caller: Caller) -> None:
            library.bring(metadata, caller)

        catalog = await loaded_catalog(config, upstream, stores, pool, bring)
        if config.upstream.rollover == "at_once":
            await asyncio.get_running_loop().run_in_executor(pool, _forget_shown, config)
        access: Access = OpenAccess(own)
        if config.auth.mode == "upstream":
            access = UpstreamAccess(
                catalog,
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
            changed=catalog.expire,
            metrics=metrics,
            wrong=shared.wrong if shared else None,
        )
        stack.push_async_callback(library.stop)
        mirror = Mirror(config, own, pool, stores, upstream, catalog, access, library, metrics, name)
        mirror.parts += _parts(mirror, environ)
        yield mirror


def _parts(mirror: Mirror, environ: Mapping[str, str]) -> Sequence[Part]:
    """What takes up another configuration."""
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
        except StoreUnavailable as error:  # of no concern to what else is read again
            log.warning("SIGHUP: %s; what was found before stays in use", error, extra=event("bucket.unfound"))
            return Ready(lambda: None)
        return Ready(found.forget, ("the bucket's credentials",) if others else ())

    def take_up(config: Config) -> None:
        mirror.config = config
        mirror.stores.take_up(config.store)
        mirror.catalog.take_up(config.upstream)
        mirror.library.take_up(holdback=config.store.holdback, retry=config.upstream.fill_retry)

    return mirror.access.prepare, own, asked, bucket, at_once(take_up)


def _forget_shown(config: Config) -> None:
    """What clients got last under when_stored grows old while they switch at once: they must not go back to it."""
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


async def loaded_catalog(
    config: Config, upstream: Upstream | None, stores: Stores, pool: Executor, bring: Bring = lambda *_: None
) -> Catalog:
    """Make the catalog, with what an earlier process knew. `bring` fetches what clients get only when it is stored."""
    rollover = None
    if config.upstream.rollover == "when_stored":
        rollover = WhenStored(
            stores.front,
            bring=bring,
            pause=config.upstream.metadata_ttl,
            note=config.store.path / SHOWN,
            pool=pool,
        )
    catalog = Catalog(
        upstream,
        stores.front,
        ttl=config.upstream.metadata_ttl,
        stale_if_error=config.upstream.stale_if_error,
        note=config.store.path / "current.json",
        pool=pool,
        rollover=rollover,
        shared=stores.note,
        clock=Clock(),
    )
    await catalog.load()
    return catalog
