"""`pps-mirror serve`: a mirror behind its listeners, alone or with workers, from start to drain.

Alone, one process has both listeners. With workers each of them has a mirror and the client listener, all on one port,
and this process keeps them running and has the admin listener.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from mirror.app import Mirror, opened
from mirror.config import Config, Server, load_admin_token, load_token
from mirror.errors import ConfigError, NotFound
from mirror.events import Events
from mirror.http.accounting import Accounting
from mirror.http.admin_access import AdminAccess, is_loopback
from mirror.http.admin_api import AdminApi
from mirror.http.client_api import ClientApi
from mirror.http.page import Page
from mirror.http.sending import Sender
from mirror.http.server import Listener
from mirror.http.tls import ServerTls
from mirror.log import Verbosity, event, log_access
from mirror.metrics import Metrics
from mirror.operating import Operator
from mirror.overview import Overview
from mirror.reload import Part, reloading
from mirror.scrub import Scrubber
from mirror.signals import on_signal, stop_requested, stop_when_left_alone
from mirror.status import Health, PrefetchState
from mirror.systemd import PassedSockets, ServiceManager
from mirror.telemetry import INTERVAL, Report, Telemetry, Together
from mirror.workers import READY, Workers

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""

log = logging.getLogger(__name__)


async def serve(config: Config, environ: Mapping[str, str], verbosity: Verbosity) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one kills the process as if it had no handler."""
    _take_descriptors()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of its memory would have credentials in it
    tls = ServerTls.of(config.server)
    manager = ServiceManager.of(environ)
    passed = PassedSockets.of(environ)
    admin_host = passed.admin_host or config.admin.host
    if not is_loopback(admin_host) and config.admin.token_file is None:
        raise ConfigError("the admin socket that was passed is not on loopback, so admin.token_file is required")
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as alive, contextlib.AsyncExitStack() as stack:
        events = stack.enter_context(Events(metrics))
        mirror = await stack.enter_async_context(
            opened(config, environ, needs_store=config.upstream.url is None, metrics=metrics)
        )
        telemetry = Telemetry(metrics, events, mirror.library, mirror.catalog)
        together = Together(telemetry)
        workers: Workers | None = None
        if config.server.workers > 1:
            reserved = _reserved_port(config.server) if passed.clients is None else _passed_port(passed.clients)
            port = stack.enter_context(reserved)
            own_port = config.server.model_copy(update={"port": port})
            own = config.model_copy(update={"server": own_port})
            workers = Workers(own, environ, together.hear, passed.clients)

        started, stopping = asyncio.Event(), asyncio.Event()

        async def health() -> Health:
            if not started.is_set():
                return Health(["the mirror is starting"])
            if stopping.is_set():
                return Health(["the mirror is stopping"])
            return _with_workers(await mirror.health(), workers)

        overview = Overview(
            mirror,
            telemetry,
            together,
            health=health,
            prefetch=lambda: PrefetchState(False, "off"),
            workers=workers,
        )
        operator = Operator(mirror, _no_prefetch, overview.expire)
        stack.push_async_callback(operator.close)
        admin_access = AdminAccess(admin_host, lambda: load_admin_token(config), mirror.pool)
        await admin_access.load()
        operators = Listener(
            AdminApi(health, overview, operator, admin_access, Page()),
            config.admin.host,
            config.admin.port,
            header_timeout=10.0,
            max_connections=256,
            drain=1.0,
        )
        await stack.enter_async_context(overview.watching())
        await operators.start(passed.admin)
        stack.push_async_callback(operators.stop)
        if workers is not None:
            await stack.enter_async_context(workers)
        else:
            port = await stack.enter_async_context(_client_listener(mirror, tls, passed.clients))
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
            extra=event("mirror.started"),
        )
        parts = _parts(mirror, tls, environ)
        if config.admin.token_file is not None:
            parts["admin.token_file"] = admin_access.load
        if workers is not None:
            parts["server.workers"] = workers.reload
        on_signal(signal.SIGUSR1, partial(_toggle, verbosity, workers))
        async with reloading(parts, manager):
            manager.ready()
            await alive.enter_async_context(manager.watched())
            await stop_requested()
        stopping.set()
        manager.stopping()
        log.info("stopping: downloads have %g s to end", config.server.drain, extra=event("mirror.stopping"))


async def serve_as_worker(
    config: Config,
    environ: Mapping[str, str],
    verbosity: Verbosity,
    say: Callable[[bytes], None],
    passed: socket.socket | None = None,
) -> None:
    """Serve clients until told to stop or left alone, then drain. `say` tells whoever keeps us a line; it blocks."""
    tls = ServerTls.of(config.server)
    metrics = Metrics()
    with Events(metrics) as events:
        async with (
            opened(config, environ, needs_store=config.upstream.url is None, metrics=metrics) as mirror,
            _reporting(mirror, Telemetry(metrics, events, mirror.library, mirror.catalog), say),
            _client_listener(mirror, tls, passed, share_port=True),
        ):
            async with reloading(_parts(mirror, tls, environ), ServiceManager.of(environ)):
                on_signal(signal.SIGUSR1, verbosity.toggle)
                say(READY)
                stop_when_left_alone()
                await stop_requested()


@asynccontextmanager
async def _reporting(mirror: Mirror, telemetry: Telemetry, say: Callable[[bytes], None]) -> AsyncIterator[None]:
    """Tell meanwhile how this worker is, whenever there is something new."""
    loop = asyncio.get_running_loop()

    async def report() -> None:
        said = Report()
        while True:
            await asyncio.sleep(INTERVAL)
            telemetry.tick()
            if (now := telemetry.report()) != said:
                said = now
                await loop.run_in_executor(mirror.pool, say, now.to_line())

    reporting = asyncio.create_task(report(), name="report")
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        with contextlib.suppress(OSError):  # nobody keeps us any more
            say(telemetry.report().to_line())


def _toggle(verbosity: Verbosity, workers: Workers | None) -> None:
    """Have all processes write everything to the log, or what the configuration says again."""
    verbosity.toggle()
    if workers is not None:
        workers.tell(signal.SIGUSR1)


async def _no_prefetch() -> str:
    raise NotFound("there is nothing to prefetch from: set upstream.url")


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
async def _client_listener(
    mirror: Mirror, tls: ServerTls | None, passed: socket.socket | None, *, share_port: bool = False
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
        location=mirror.location,
    )
    accounting = Accounting(client_api, log_access, mirror.metrics)
    clients = Listener(
        accounting,
        server.host,
        server.port,
        header_timeout=server.header_timeout,
        max_connections=server.max_connections,
        drain=server.drain,
        log_access=accounting.ended,
        tls=tls.context if tls else None,
        share_port=share_port,
    )
    try:
        await clients.start(passed)
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


@contextlib.contextmanager
def _passed_port(passed: socket.socket) -> Iterator[int]:
    """Hold the socket that workers share, also between two of them."""
    with passed:
        yield int(passed.getsockname()[1])


def _with_workers(health: Health, workers: Workers | None) -> Health:
    if workers is None or not workers.missing:
        return health
    said = f"{workers.missing} of {workers.count} workers do not serve"
    if workers.missing == workers.count:
        return Health([*health.reasons, said], health.degraded)
    return Health(health.reasons, [*health.degraded, said])
