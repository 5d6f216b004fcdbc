"""One mirror, wired from a configuration: the only place that builds objects. Start it, run it, stop it."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from mirror.access import Access, OpenAccess, TokensAccess, UpstreamAccess
from mirror.caller import Own
from mirror.catalog import Catalog
from mirror.config import Config, load_token
from mirror.errors import ConfigError, MirrorError
from mirror.http.admin_api import AdminApi
from mirror.http.client_api import ClientApi
from mirror.http.sending import Sender
from mirror.http.server import Listener
from mirror.http.tls import ServerTls
from mirror.library import Library
from mirror.log import log_access
from mirror.reload import Reloader
from mirror.store.disk import DiskStore
from mirror.systemd import ServiceManager
from mirror.upstream.client import Upstream

log = logging.getLogger(__name__)

BLOCKING_THREADS = 16
"""Threads for what waits for the disk; appending to journals has its own."""

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """The rooms of one mirror, open. `own` is its own credential."""

    config: Config
    own: Own
    pool: ThreadPoolExecutor
    store: DiskStore
    upstream: Upstream | None
    catalog: Catalog
    access: Access
    library: Library

    async def not_ready(self) -> list[str]:
        """Why the mirror cannot serve, in words; empty when it can."""
        try:
            await self.store.list()
        except MirrorError as error:
            return [error.message]
        return []


@asynccontextmanager
async def opened(config: Config, environ: Mapping[str, str]) -> AsyncIterator[Mirror]:
    """Build a mirror without listeners; its fills are stopped and their partials kept on the way out.

    Raises ConfigError, or StoreUnavailable when the store's directory cannot be used.
    """
    own = Own(load_token(config, environ))
    url = config.upstream.url
    if url is None and config.auth.mode == "upstream":
        raise ConfigError(
            'auth.mode = "upstream" lets nobody in without upstream.url; set upstream.url, or auth.mode = "open"'
        )
    async with AsyncExitStack() as stack:
        pool = ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="blocking")
        stack.callback(pool.shutdown)
        store = DiskStore(config.store.path, min_free=config.store.min_free, pool=pool)
        await store.prepare()
        upstream = await stack.enter_async_context(Upstream(config.upstream, url)) if url else None
        catalog = await loaded_catalog(config, upstream, store, pool)
        access: Access = OpenAccess(own)
        if config.auth.mode == "upstream":
            access = UpstreamAccess(
                catalog,
                ttl=config.auth.ttl,
                stale_if_error=config.upstream.stale_if_error,
                note=config.store.path / "access.json",
                pool=pool,
            )
        elif config.auth.tokens_file is not None:
            access = TokensAccess(own, config.auth.tokens_file, pool)
        await access.load()
        stack.push_async_callback(access.close)
        library = Library(
            store,
            upstream,
            own=own,
            holdback=config.store.holdback,
            retry=config.upstream.fill_retry,
            changed=catalog.expire,
        )
        stack.push_async_callback(library.stop)
        yield Mirror(config, own, pool, store, upstream, catalog, access, library)


async def loaded_catalog(config: Config, upstream: Upstream | None, store: DiskStore, pool: Executor) -> Catalog:
    """Make the catalog, with what an earlier process knew."""
    catalog = Catalog(
        upstream,
        store,
        ttl=config.upstream.metadata_ttl,
        stale_if_error=config.upstream.stale_if_error,
        note=config.store.path / "current.json",
        pool=pool,
    )
    await catalog.load()
    return catalog


async def serve(config: Config, environ: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one kills the process as if it had no handler."""
    tls = ServerTls.of(config.server)
    manager = ServiceManager.of(environ)
    async with AsyncExitStack() as alive, opened(config, environ) as mirror:
        stopping = asyncio.Event()

        async def not_ready() -> list[str]:
            return ["the mirror is stopping"] if stopping.is_set() else await mirror.not_ready()

        sender = Sender(mirror.pool, SENDING_THREADS)
        client_api = ClientApi(
            mirror.access,
            mirror.catalog,
            mirror.library,
            mirror.upstream,
            sender,
            passthrough=config.upstream.passthrough,
        )
        server, admin = config.server, config.admin
        clients = Listener(
            client_api,
            server.host,
            server.port,
            header_timeout=server.header_timeout,
            max_connections=server.max_connections,
            drain=server.drain,
            log_access=log_access,
            tls=tls.context if tls else None,
        )
        operators = Listener(
            AdminApi(not_ready), admin.host, admin.port, header_timeout=10.0, max_connections=256, drain=1.0
        )
        async with AsyncExitStack() as listeners:
            listeners.callback(sender.close)
            for listener in (operators, clients):
                await listener.start()
                listeners.push_async_callback(listener.stop)
            log.info(
                "serving %s from %s on %s://%s:%d, admin on http://%s:%d",
                config.upstream.url or "what is stored",
                config.store.path,
                "https" if tls else "http",
                server.host,
                clients.port,
                admin.host,
                operators.port,
            )
            await alive.enter_async_context(manager.watched())
            await _run(Reloader(_reloadable(mirror, tls, environ), manager), manager, stopping)
            log.info("stopping: downloads have %g s to end", server.drain)


def _reloadable(
    mirror: Mirror, tls: ServerTls | None, environ: Mapping[str, str]
) -> dict[str, Callable[[], Awaitable[None]]]:
    """What SIGHUP reads again, by the key that names the file."""
    parts: dict[str, Callable[[], Awaitable[None]]] = {}
    if mirror.config.auth.mode == "tokens":
        parts["auth.tokens_file"] = mirror.access.load
    if mirror.config.upstream.token_file is not None:

        async def load_own() -> None:
            loop = asyncio.get_running_loop()
            mirror.own.take(await loop.run_in_executor(mirror.pool, load_token, mirror.config, environ))
            mirror.library.renew()

        parts["upstream.token_file"] = load_own
    if tls is not None:
        parts["server.tls_cert"] = partial(tls.load, mirror.pool)
    return parts


async def _run(reloader: Reloader, manager: ServiceManager, stopping: asyncio.Event) -> None:
    """Reload at each SIGHUP until the first SIGTERM or SIGINT; from then on another one of those kills."""
    loop = asyncio.get_running_loop()
    _on_signal(loop, signal.SIGHUP, reloader.ask)
    for number in (signal.SIGTERM, signal.SIGINT):
        _on_signal(loop, number, stopping.set)
    manager.ready()
    async with asyncio.TaskGroup() as tasks:
        reloading = tasks.create_task(reloader.run(), name="reload")
        await stopping.wait()
        reloading.cancel()
    manager.stopping()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)


def _on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: Callable[[], None]) -> None:
    """Call `callback` in the loop once for each such signal.

    asyncio alone may lose one: what it learns of a signal by is a byte in the pipe that wakes its loop for threads too,
    and when hundreds of downloads end at once that pipe is full. So asyncio's part is to wake the loop, which a full
    pipe does as well, and Python's own handler calls.
    """
    loop.add_signal_handler(number, lambda: None)
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))
