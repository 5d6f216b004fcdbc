"""`pps-mirror serve`: a mirror behind its listeners, alone or with workers, from start to drain.

Alone, one process has both listeners. With workers each of them has a mirror and the client listener, all on one port,
and this process keeps them running and has the admin listener.
"""

import asyncio
import contextlib
import logging
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial

from mirror import zone
from mirror.app import opened
from mirror.config import Config
from mirror.http.tls import ServerTls
from mirror.listening import client_listener, shared_port, take_descriptors
from mirror.log import Verbosity, event
from mirror.log_writer import LogWriter
from mirror.managing import managed
from mirror.metrics import Metrics
from mirror.operators.events import Events
from mirror.operators.telemetry import Telemetry, Together
from mirror.pacing import Pace
from mirror.process.orphans import reaping
from mirror.process.reload import Reload
from mirror.process.signals import on_signal, stop_requested
from mirror.process.systemd import PassedSockets, ServiceManager
from mirror.process.workers import Workers
from mirror.reloadable import Part, at_once
from mirror.scrub import Scrubber
from mirror.status import Health
from mirror.upstream.throttle import Throttle

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
    take_descriptors()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of its memory would have credentials in it
    tls = ServerTls.of(config.server)
    manager = ServiceManager.of(environ)
    passed = PassedSockets.of(environ)
    if (said := zone.trouble(environ)) is not None:
        log.warning("%s", said, extra=event("timezone.unknown"))
    metrics, throttle = Metrics(), Throttle()
    writer.count_lost_with(metrics.log_lines_lost.inc)
    async with contextlib.AsyncExitStack() as alive, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(reaping())
        events = stack.enter_context(Events(metrics))
        pace = Pace(throttle, config.upstream)
        await stack.enter_async_context(pace.kept())
        mirror = await stack.enter_async_context(
            opened(config, environ, needs_store=config.upstream.url is None, metrics=metrics, throttle=throttle)
        )
        telemetry = Telemetry(metrics, events, mirror.library, mirror.catalog)
        together = Together(telemetry)
        workers: Workers | None = None
        if config.server.workers > 1:
            port = stack.enter_context(shared_port(config.server, passed.clients))
            own = _with_port(config, port)
            workers = Workers(own, environ, throttle, mirror.name, together.hear, passed.clients)
            mirror.parts += _of_workers(workers, port, tls, mirror.pool)

        started, stopping = asyncio.Event(), asyncio.Event()

        async def health() -> Health:
            if not started.is_set():
                return Health(["the mirror is starting"])
            if stopping.is_set():
                return Health(["the mirror is stopping"])
            return _with_workers(await mirror.health(together.store), workers)

        async def read(running: Config) -> Config:
            return await asyncio.get_running_loop().run_in_executor(mirror.pool, read_again, running)

        operators = await stack.enter_async_context(managed(mirror, telemetry, together, health, workers, passed.admin))
        mirror.parts += (
            at_once(lambda config: pace.take_up(config.upstream)),
            at_once(lambda config: verbosity.take_up(config.log)),
        )
        if workers is not None:
            await stack.enter_async_context(workers)
        else:
            port = await stack.enter_async_context(client_listener(mirror, tls, passed.clients))
        await stack.enter_async_context(mirror.stores.kept(mirror.catalog.known_hash))
        if mirror.stores.disk is not None:
            scrubber = Scrubber(mirror.stores.disk, config.store.scrub_interval)
            mirror.parts.append(at_once(lambda config: setattr(scrubber, "interval", config.store.scrub_interval)))
            await stack.enter_async_context(scrubber.running())
        if mirror.upstream is not None:
            await stack.enter_async_context(operators.prefetcher.running())
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
        on_signal(signal.SIGUSR1, partial(_toggle, verbosity, workers))
        async with Reload(config, read, mirror.parts).kept(manager):
            manager.ready()
            await alive.enter_async_context(manager.watched())
            started.set()
            await stop_requested()
        stopping.set()
        manager.stopping()
        log.info("stopping: downloads have %g s to end", mirror.config.server.drain, extra=event("mirror.stopping"))


def _with_port(config: Config, port: int) -> Config:
    return config.model_copy(update={"server": config.server.model_copy(update={"port": port})})


def _of_workers(workers: Workers, port: int, tls: ServerTls | None, pool: Executor) -> Iterator[Part]:
    """What takes up another configuration for workers, who listen on that port."""
    yield at_once(lambda config: workers.reload(_with_port(config, port)))
    if tls is not None:  # so that a pair that cannot be used changes nothing in any of them
        yield lambda config: tls.prepare(config.server, pool)


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
