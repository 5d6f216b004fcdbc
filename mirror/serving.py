"""`pps-mirror serve`: a mirror behind its listeners, alone or with workers, from start to drain.

Alone, one process has both listeners. With workers each of them has a mirror and the client listener, all on one port,
and this process keeps them running and has the admin listener.
"""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from mirror.app import Mirror, opened
from mirror.config import Config, Server, load_token
from mirror.errors import ConfigError
from mirror.http.admin_api import AdminApi, Health
from mirror.http.client_api import ClientApi
from mirror.http.sending import Sender
from mirror.http.server import Listener
from mirror.http.tls import ServerTls
from mirror.log import log_access
from mirror.reload import Part, reloading
from mirror.scrub import Scrubber
from mirror.signals import stop_requested, stop_when_left_alone
from mirror.systemd import ServiceManager
from mirror.workers import Workers

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""

log = logging.getLogger(__name__)


async def serve(config: Config, environ: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one kills the process as if it had no handler."""
    _take_descriptors()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of its memory would have credentials in it
    tls = ServerTls.of(config.server)
    manager = ServiceManager.of(environ)
    async with contextlib.AsyncExitStack() as alive, contextlib.AsyncExitStack() as stack:
        mirror = await stack.enter_async_context(opened(config, environ, needs_store=config.upstream.url is None))
        workers: Workers | None = None
        if config.server.workers > 1:
            port = stack.enter_context(_reserved_port(config.server))
            own_port = config.server.model_copy(update={"port": port})
            workers = Workers(config.model_copy(update={"server": own_port}), environ)

        started, stopping = asyncio.Event(), asyncio.Event()

        async def health() -> Health:
            if not started.is_set():
                return Health(["the mirror is starting"])
            if stopping.is_set():
                return Health(["the mirror is stopping"])
            return _with_workers(await mirror.health(), workers)

        operators = Listener(
            AdminApi(health), config.admin.host, config.admin.port, header_timeout=10.0, max_connections=256, drain=1.0
        )
        await operators.start()
        stack.push_async_callback(operators.stop)
        if workers is not None:
            await stack.enter_async_context(workers)
        else:
            port = await stack.enter_async_context(_client_listener(mirror, tls))
        await stack.enter_async_context(mirror.stores.kept(mirror.catalog.known_hash))
        if mirror.stores.disk is not None:
            await stack.enter_async_context(Scrubber(mirror.stores.disk, config.store.scrub_interval).running())
        started.set()
        log.info(
            "serving %s from %s on %s://%s:%d, admin on http://%s:%d",
            config.upstream.url or "what is stored",
            config.store.path,
            "https" if tls else "http",
            config.server.host,
            port,
            config.admin.host,
            operators.port,
        )
        parts = _parts(mirror, tls, environ)
        if workers is not None:
            parts["server.workers"] = workers.reload
        async with reloading(parts, manager):
            manager.ready()
            await alive.enter_async_context(manager.watched())
            await stop_requested()
        stopping.set()
        manager.stopping()
        log.info("stopping: downloads have %g s to end", config.server.drain)


async def serve_as_worker(config: Config, environ: Mapping[str, str], say_ready: Callable[[], None]) -> None:
    """Serve clients until told to stop or left alone, then drain."""
    tls = ServerTls.of(config.server)
    async with (
        opened(config, environ, needs_store=config.upstream.url is None) as mirror,
        _client_listener(mirror, tls, share_port=True),
    ):
        async with reloading(_parts(mirror, tls, environ), ServiceManager.of(environ)):
            say_ready()
            stop_when_left_alone()
            await stop_requested()


def _parts(mirror: Mirror, tls: ServerTls | None, environ: Mapping[str, str]) -> dict[str, Part]:
    """What SIGHUP reads again, by the key that names the file."""
    parts: dict[str, Part] = {}
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


@asynccontextmanager
async def _client_listener(mirror: Mirror, tls: ServerTls | None, *, share_port: bool = False) -> AsyncIterator[int]:
    """Serve clients; on which port."""
    server = mirror.config.server
    sender = Sender(mirror.pool, SENDING_THREADS)
    client_api = ClientApi(
        mirror.access,
        mirror.catalog,
        mirror.library,
        mirror.upstream,
        sender,
        passthrough=mirror.config.upstream.passthrough,
        location=mirror.location,
    )
    clients = Listener(
        client_api,
        server.host,
        server.port,
        header_timeout=server.header_timeout,
        max_connections=server.max_connections,
        drain=server.drain,
        log_access=log_access,
        tls=tls.context if tls else None,
        share_port=share_port,
    )
    try:
        await clients.start()
        try:
            yield clients.port
        finally:
            await clients.stop()
    finally:
        sender.close()


def _take_descriptors() -> None:
    """Take as many file descriptors as are allowed: the usual 1024 are fewer than `server.max_connections`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _reserved_port(server: Server) -> Iterator[int]:
    """Hold the address that workers will share, so that nobody else can have it. Raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):  # does not share: it fails when somebody listens there
            pass
        with socket.socket(family) as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(address)
            yield int(holder.getsockname()[1])
    except OSError as error:
        raise ConfigError(f"cannot listen on {server.host} port {server.port}: {error.strerror}") from None


def _with_workers(health: Health, workers: Workers | None) -> Health:
    if workers is None or not workers.missing:
        return health
    said = f"{workers.missing} of {workers.count} workers do not serve"
    if workers.missing == workers.count:
        return Health([*health.reasons, said], health.degraded)
    return Health(health.reasons, [*health.degraded, said])
