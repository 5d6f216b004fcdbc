"""One mirror, wired from a configuration: the only place that builds objects. Start it, run it, stop it."""

import asyncio
import functools
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from mirror.access import Access, OpenAccess, UpstreamAccess
from mirror.caller import Caller
from mirror.catalog import Catalog
from mirror.config import Config, Server, load_token
from mirror.errors import ConfigError, MirrorError
from mirror.http.admin_api import AdminApi
from mirror.http.client_api import ClientApi
from mirror.http.sending import Sender
from mirror.http.server import Listener
from mirror.library import Library
from mirror.log import log_access
from mirror.retention import evictable
from mirror.scrub import Scrubber
from mirror.store.disk import DiskStore
from mirror.upstream.client import Upstream

log = logging.getLogger(__name__)

BLOCKING_THREADS = 16
"""Threads for what waits for the disk; appending to journals has its own."""

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """The rooms of one mirror, open. `own` is its own credential, None when it has none."""

    config: Config
    own: Caller | None
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
    token = load_token(config, environ)
    own = Caller(f"Bearer {token}", "pps-mirror") if token else None
    url = config.upstream.url
    if url is None and config.auth.mode == "upstream":
        raise ConfigError(
            'auth.mode = "upstream" lets nobody in without upstream.url; set upstream.url, or auth.mode = "open"'
        )
    async with AsyncExitStack() as stack:
        pool = ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="blocking")
        stack.callback(pool.shutdown)
        store = disk_store(config, pool)
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


def disk_store(config: Config, pool: Executor) -> DiskStore:
    """Make the store of a configuration; it touches nothing until it is asked to."""
    return DiskStore(
        config.store.path,
        min_free=config.store.min_free,
        max_size=config.store.max_size,
        retention=functools.partial(evictable, keep=config.store.keep),
        pool=pool,
    )


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
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once."""
    tls = server_tls(config.server)
    async with opened(config, environ) as mirror:
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
            tls=tls,
        )
        operators = Listener(
            AdminApi(mirror.not_ready), admin.host, admin.port, header_timeout=10.0, max_connections=256, drain=1.0
        )
        async with AsyncExitStack() as listeners:
            listeners.callback(sender.close)
            scrubbing = asyncio.create_task(Scrubber(mirror.store, config.store.scrub_interval).run(), name="scrub")
            listeners.push_async_callback(_cancel, scrubbing)
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
            await _stop_requested()
            log.info("stopping: downloads have %g s to end", server.drain)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _stop_requested() -> None:
    """Wait for the first SIGTERM or SIGINT; from then on another one has its default effect."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        _on_signal(loop, number, stop.set)
    await stop.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)


def _on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: Callable[[], None]) -> None:
    """Call `callback` in the loop once or twice for each such signal.

    asyncio alone may lose one: what wakes its loop for a signal is a byte in the pipe that wakes it for threads too,
    and when hundreds of downloads end at once that pipe is full. So Python's own handler calls as well.
    """
    loop.add_signal_handler(number, callback)
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))


def server_tls(config: Server) -> ssl.SSLContext | None:
    """The listener's TLS, None for plain HTTP. Raises ConfigError naming what is wrong with the pair."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for key, path in (("server.tls_cert", config.tls_cert), ("server.tls_key", config.tls_key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{key} = {str(path)!r} cannot be read: {error.strerror}") from None
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=lambda: "")
    except ssl.SSLError as error:
        raise ConfigError(
            f"server.tls_cert = {str(config.tls_cert)!r} and server.tls_key are not a PEM certificate chain and its "
            f"unencrypted key: {error.reason or 'not PEM'}"
        ) from None
    return context
