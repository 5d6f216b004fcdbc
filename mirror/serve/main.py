"""`pps-mirror serve`: runs a mirror behind its listeners, with or without workers, from its start to its end.

Without workers one process has both listeners. With workers each of them has a mirror and the client listener, all on
one port, and this process keeps them running and has the admin listener.
"""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from mirror.admin.all_processes import AllProcesses
from mirror.admin.hooks.hooks import Hooks
from mirror.admin.recent_events import Events
from mirror.admin.worker_report import Telemetry
from mirror.common import time_zone as zone
from mirror.common.hosts import as_url
from mirror.common.log import Output, Verbosity, event
from mirror.common.log_writer import LogWriter
from mirror.common.metrics import Metrics
from mirror.config import Config, Server
from mirror.config.reloadable import at_once
from mirror.http.bind import listening, unusable
from mirror.http.tls import ServerTls
from mirror.images.prefetch import Prefetcher
from mirror.images.scrub import Scrubber
from mirror.process import asyncio_errors
from mirror.process.descriptors import DescriptorBudget, take_all
from mirror.process.orphans import reaping
from mirror.process.reload import Read, Reload
from mirror.process.signals import on_signal, stop_requested
from mirror.process.systemd import PassedSockets, ServiceManager
from mirror.process.workers import ClientProcesses, Heard, Workers
from mirror.serve.admin_listener import AdminListener
from mirror.serve.client_listener import ClientListener
from mirror.serve.readiness import Phase, Readiness
from mirror.upstream.rate_limit import Throttle
from mirror.upstream.rate_schedule import RateSchedule
from mirror.wiring.mirror import Mirror, Shared, open_mirror
from mirror.wiring.registry import NO_DISK

log = logging.getLogger(__name__)


async def serve(
    config: Config,
    environ: Mapping[str, str],
    verbosity: Verbosity,
    writer: LogWriter,
    read_again: Callable[[Config], Config],
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one kills the process as if it had no handler.

    `read_again` reads the configuration again at a SIGHUP; it gets the running one. Each step of the start needs the
    steps before it, and is undone before them.
    """
    _prepare_process(config.server)
    tls, manager, passed = ServerTls.of(config.server), ServiceManager.of(environ), PassedSockets.of(environ)
    _warn_of_time_zone(environ)
    metrics, throttle, shared = Metrics(), Throttle(), Shared.of()
    writer.count_lost_with(metrics.log_lines_lost.inc)
    hooks = Hooks(config, environ, metrics)
    with Events() as events:
        pace = RateSchedule(throttle, config.upstream)  # its first rate is an event
        async with (
            AsyncExitStack() as until_the_end,
            reaping(),
            pace.kept(),
            hooks.publisher.running(),
            open_mirror(
                *(config, environ),
                needs_store=config.upstream.url is None,
                metrics=metrics,
                throttle=throttle,
                shared=shared,
                notify=hooks.publisher,
            ) as mirror,
            hooks.running(mirror),
        ):
            telemetry = Telemetry(metrics, events, mirror.library, mirror.metadata_cache, mirror.stores)
            processes = AllProcesses(telemetry, hooks.publisher.keep)
            memory = throttle.descriptor, *shared.descriptors
            clients = _client_processes(mirror, environ, tls, passed, memory, processes.hear, verbosity.output)
            readiness = Readiness(mirror, processes, clients)
            async with (
                AdminListener(mirror, processes, readiness.health, clients, hooks, passed.admin) as operators,
                clients,
                _background(mirror, operators.prefetcher),
            ):
                mirror.parts += (
                    at_once(lambda config: pace.take_up(config.upstream)),
                    at_once(lambda config: verbosity.take_up(config.log.level, config.log.format)),
                )
                stop = stop_requested()
                on_signal(signal.SIGUSR1, partial(_toggle, verbosity, clients))
                async with Reload(config, _reading(mirror, read_again), mirror.parts).kept(manager):
                    _announce(config, tls, clients.port, operators.port)  # every signal is heard by now
                    manager.ready()
                    await until_the_end.enter_async_context(manager.watched())
                    readiness.phase = Phase.SERVING
                    await stop.wait()
                readiness.phase = Phase.STOPPING
                manager.stopping()
                log.info(
                    "stopping: downloads have %g s to end", mirror.config.server.drain, extra=event("mirror.stopping")
                )


def _prepare_process(server: Server) -> None:
    """Raise the limit of descriptors, forbid core dumps, and report asyncio's errors. Raises ConfigError."""
    asyncio.get_running_loop().set_exception_handler(asyncio_errors.report)
    take_all()
    if lacking := DescriptorBudget.of(server.max_connections).lacking:
        log.warning("%s", lacking, extra=event("listener.limited"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of its memory would have credentials in it


def _warn_of_time_zone(environ: Mapping[str, str]) -> None:
    if (said := zone.trouble(environ)) is not None:
        log.warning("%s", said, extra=event("timezone.unknown"))


def _client_processes(
    mirror: Mirror,
    environ: Mapping[str, str],
    tls: ServerTls | None,
    passed: PassedSockets,
    memory: Sequence[int],
    heard: Heard,
    output: Output,
) -> ClientProcesses:
    """Return what serves clients: this process, or workers, whose sockets listen already when this returns.

    Raises ConfigError or AddressUnavailable.
    """
    config, metrics = mirror.config, mirror.metrics
    sockets: Sequence[socket.socket] = [] if passed.clients is None else [passed.clients]
    if config.server.workers == 1:
        return ClientListener(mirror, tls, sockets, output)
    sockets = sockets or _listening(config.server)
    workers = Workers(config, environ, memory, mirror.name, heard, sockets, metrics.worker_deaths.inc)
    mirror.parts.append(at_once(workers.reload))
    if tls is not None:  # so that a bad certificate changes nothing in any worker
        mirror.parts.append(lambda config: tls.prepare(config.server, mirror.pool))
    return workers


def _listening(server: Server) -> Sequence[socket.socket]:
    """Open the sockets that all workers share. Raises ConfigError or AddressUnavailable."""
    try:
        return listening(server.host, server.port)
    except OSError as error:
        raise unusable(server.host, server.port, error) from None


@asynccontextmanager
async def _background(mirror: Mirror, prefetcher: Prefetcher) -> AsyncIterator[None]:
    """Maintain the bucket, scrub, index and prefetch in the background while the context lasts."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(mirror.stores.kept(mirror.metadata_cache.known_hash))
        if mirror.stores.disk is not None:
            scrubber = Scrubber(
                mirror.stores.disk, mirror.config.store.scrub_interval, mirror.metrics, notify=mirror.notify
            )
            mirror.parts.append(at_once(lambda config: setattr(scrubber, "interval", config.store.scrub_interval)))
            await stack.enter_async_context(scrubber.running())
        if mirror.registry is not None:
            if mirror.registry.offer is None:
                log.info("docker pull: %s", NO_DISK, extra=event("registry.empty"))
            else:
                await stack.enter_async_context(mirror.registry.offer.indexer.running())
        if mirror.upstream is not None:
            await stack.enter_async_context(prefetcher.running())
        yield


def _announce(config: Config, tls: ServerTls | None, port: int, admin_port: int) -> None:
    log.info(
        "serving %s from %s on %s://%s:%d, admin on http://%s:%d",
        config.upstream.url or "what is stored",
        config.store.path,
        "https" if tls else "http",
        as_url(config.server.host),
        port,
        as_url(config.admin.host),
        admin_port,
        extra=event("mirror.started"),
    )


def _reading(mirror: Mirror, read_again: Callable[[Config], Config]) -> Read:
    """Make `read_again` run in a thread, so that it does not block the loop."""

    async def read(running: Config) -> Config:
        return await asyncio.get_running_loop().run_in_executor(mirror.pool, read_again, running)

    return read


def _toggle(verbosity: Verbosity, clients: ClientProcesses) -> None:
    """Switch debug logging on or off in all processes."""
    verbosity.toggle()
    clients.toggle_debugging()
