"""`pps-mirror serve`: a mirror behind its listeners, alone or with workers, from start to drain.

Alone, one process has both listeners. With workers each of them has a mirror and the client listener, all on one port,
and this process keeps them running and has the admin listener.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager

from mirror.app import Mirror, opened, server_tls
from mirror.config import Config, Server
from mirror.errors import ConfigError
from mirror.http.admin_api import AdminApi, Health
from mirror.http.client_api import ClientApi
from mirror.http.sending import Sender
from mirror.http.server import Listener
from mirror.log import log_access
from mirror.scrub import Scrubber
from mirror.signals import stop_requested, stop_when_left_alone
from mirror.workers import Workers

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""

log = logging.getLogger(__name__)


async def serve(config: Config, environ: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once."""
    tls = server_tls(config.server)
    async with contextlib.AsyncExitStack() as stack:
        mirror = await stack.enter_async_context(opened(config, environ, needs_store=config.upstream.url is None))
        workers: Workers | None = None
        if config.server.workers > 1:
            port = stack.enter_context(_reserved_port(config.server))
            own_port = config.server.model_copy(update={"port": port})
            workers = Workers(config.model_copy(update={"server": own_port}), environ)

        started = asyncio.Event()

        async def health() -> Health:
            if not started.is_set():
                return Health(["the mirror is starting"])
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
        await stack.enter_async_context(Scrubber(mirror.store, config.store.scrub_interval).running())
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
        await stop_requested()
        log.info("stopping: downloads have %g s to end", config.server.drain)


async def serve_as_worker(config: Config, environ: Mapping[str, str], say_ready: Callable[[], None]) -> None:
    """Serve clients until told to stop or left alone, then drain."""
    tls = server_tls(config.server)
    async with (
        opened(config, environ, needs_store=config.upstream.url is None) as mirror,
        _client_listener(mirror, tls, share_port=True),
    ):
        say_ready()
        stop_when_left_alone()
        await stop_requested()


@asynccontextmanager
async def _client_listener(
    mirror: Mirror, tls: ssl.SSLContext | None, *, share_port: bool = False
) -> AsyncIterator[int]:
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
    )
    clients = Listener(
        client_api,
        server.host,
        server.port,
        header_timeout=server.header_timeout,
        max_connections=server.max_connections,
        drain=server.drain,
        log_access=log_access,
        tls=tls,
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
