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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

from mirror.admin.recent_events import Events
from mirror.admin.worker_report import AllProcesses, Telemetry
from mirror.common import time_zone as zone
from mirror.common.hosts import as_url
from mirror.common.log import Verbosity, event
from mirror.common.log_writer import LogWriter
from mirror.common.metrics import Metrics
from mirror.config import Config, Server
from mirror.config.reloadable import Part, at_once
from mirror.http.bind import listening, unusable
from mirror.http.tls import ServerTls
from mirror.images.scrub import Scrubber
from mirror.model.status import Health
from mirror.process import asyncio_errors
from mirror.process.descriptors import DescriptorBudget, take_all
from mirror.process.orphans import reaping
from mirror.process.reload import Reload
from mirror.process.signals import on_signal, stop_requested
from mirror.process.systemd import PassedSockets, ServiceManager
from mirror.process.workers import Workers
from mirror.serve.admin_listener import managed
from mirror.serve.client_listener import client_listener
from mirror.upstream.rate_limit import Throttle
from mirror.upstream.rate_schedule import RateSchedule
from mirror.wiring.mirror import Shared, opened

log = logging.getLogger(__name__)


async def serve(
    config: Config,
    environ: Mapping[str, str],
    verbosity: Verbosity,
    writer: LogWriter,
    read_again: Callable[[Config], Config],
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one kills the process as if it had no handler.

    `read_again` gives the configuration as it is written at a SIGHUP, for the one that holds then.
    """
    asyncio.get_running_loop().set_exception_handler(asyncio_errors.report)
    _take_descriptors(config.server)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of its memory would have credentials in it
    tls = ServerTls.of(config.server)
    manager = ServiceManager.of(environ)
    passed = PassedSockets.of(environ)
    clients = [] if passed.clients is None else [passed.clients]
    if (said := zone.trouble(environ)) is not None:
        log.warning("%s", said, extra=event("timezone.unknown"))
    metrics, throttle, shared = Metrics(), Throttle(), Shared.of()
    writer.count_lost_with(metrics.log_lines_lost.inc)
    async with contextlib.AsyncExitStack() as alive, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(reaping())
        events = stack.enter_context(Events())
        pace = RateSchedule(throttle, config.upstream)
        await stack.enter_async_context(pace.kept())
        mirror = await stack.enter_async_context(
            opened(
                config,
                environ,
                needs_store=config.upstream.url is None,
                metrics=metrics,
                throttle=throttle,
                shared=shared,
            )
        )
        telemetry = Telemetry(metrics, events, mirror.library, mirror.catalog, mirror.stores)
        together = AllProcesses(telemetry)
        workers: Workers | None = None
        if config.server.workers > 1:
            sockets = clients or _listening(config.server)
            port = int(sockets[0].getsockname()[1])
            memory = throttle.descriptor, *shared.descriptors
            workers = Workers(config, environ, memory, mirror.name, together.hear, sockets, metrics.worker_deaths.inc)
            mirror.parts += _of_workers(workers, tls, mirror.pool)

        started, stopping = asyncio.Event(), asyncio.Event()

        async def health() -> Health:
            if not started.is_set():
                return Health(["the mirror is starting"])
            if stopping.is_set():
                return Health(["the mirror is stopping"])
            return _with_workers(await mirror.health(together.store, together.stuck), workers)

        async def read(running: Config) -> Config:
            return await asyncio.get_running_loop().run_in_executor(mirror.pool, read_again, running)

        operators = await stack.enter_async_context(managed(mirror, telemetry, together, health, workers, passed.admin))
        mirror.parts += (
            at_once(lambda config: pace.take_up(config.upstream)),
            at_once(lambda config: verbosity.take_up(config.log.level, config.log.format)),
        )
        if workers is not None:
            await stack.enter_async_context(workers)
        else:
            port = await stack.enter_async_context(client_listener(mirror, tls, clients))
        await stack.enter_async_context(mirror.stores.kept(mirror.catalog.known_hash))
        if mirror.stores.disk is not None:
            scrubber = Scrubber(mirror.stores.disk, config.store.scrub_interval, metrics)
            mirror.parts.append(at_once(lambda config: setattr(scrubber, "interval", config.store.scrub_interval)))
            await stack.enter_async_context(scrubber.running())
        if mirror.upstream is not None:
            await stack.enter_async_context(operators.prefetcher.running())
        log.info(
            "serving %s from %s on %s://%s:%d, admin on http://%s:%d",
            config.upstream.url or "what is stored",
            config.store.path,
            "https" if tls else "http",
            as_url(config.server.host),
            port,
            as_url(config.admin.host),
            operators.port,
            extra=event("mirror.started"),
        )
        on_signal(signal.SIGUSR1, partial(_toggle, verbosity, workers))
        async with Reload(config, read, mirror.parts).kept(manager):
            manager.ready()
            await alive.enter_async_context(manager.watched())
            started.set()
            await stop_requested()
        stopping.set()
        manager.stopping()
        log.info("stopping: downloads have %g s to end", mirror.config.server.drain, extra=event("mirror.stopping"))


def _of_workers(workers: Workers, tls: ServerTls | None, pool: Executor) -> Iterator[Part]:
    """What takes up another configuration for workers."""
    yield at_once(workers.reload)
    if tls is not None:  # so that a pair that cannot be used changes nothing in any of them
        yield lambda config: tls.prepare(config.server, pool)


def _take_descriptors(server: Server) -> None:
    """Take those we may have, and say when they are too few. Raises ConfigError."""
    take_all()
    if lacking := DescriptorBudget.of(server.max_connections).lacking:
        log.warning("%s", lacking, extra=event("listener.limited"))


def _listening(server: Server) -> Sequence[socket.socket]:
    """Listen for all workers. Raises ConfigError or AddressUnavailable."""
    try:
        return listening(server.host, server.port)
    except OSError as error:
        raise unusable(server.host, server.port, error) from None


def _toggle(verbosity: Verbosity, workers: Workers | None) -> None:
    """Have all processes write everything to the log, or what the configuration says again."""
    verbosity.toggle()
    if workers is not None:
        workers.toggle_debugging()


def _with_workers(health: Health, workers: Workers | None) -> Health:
    if workers is None or not workers.missing:
        return health
    said = f"{workers.missing} of {workers.count} workers do not serve"
    if workers.missing == workers.count:
        return Health([*health.reasons, said], health.degraded)
    return Health(health.reasons, [*health.degraded, said])
