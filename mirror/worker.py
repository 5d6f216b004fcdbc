"""One of several processes that serve clients; see `mirror.process.workers`, which starts it.

Its arguments are the mirror's name, which all its workers share (see `mirror.loop`), and inherited descriptors: of the
throttle, and of the socket to serve if it does not listen itself.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from mirror import log
from mirror.app import Mirror, opened
from mirror.config import Config
from mirror.errors import ConfigError, MirrorError, no_thread
from mirror.http.tls import ServerTls
from mirror.listening import client_listener
from mirror.log import Verbosity
from mirror.metrics import Metrics
from mirror.operators.events import Events
from mirror.operators.telemetry import INTERVAL, Report, Telemetry
from mirror.process.reload import Reload
from mirror.process.signals import hear_keeper, on_signal, stop_requested
from mirror.process.systemd import ServiceManager, listening_socket
from mirror.process.workers import READY
from mirror.reloadable import at_once
from mirror.upstream.throttle import Throttle


def main() -> int:
    """Serve until told to stop, or until nobody keeps us any more; the exit status."""
    config = _config(sys.stdin.buffer.readline())
    metrics = Metrics()
    with log.written_aside(config.log) as (verbosity, writer):
        writer.count_lost_with(metrics.log_lines_lost.inc)
        try:
            throttle, *passed = map(int, sys.argv[2:])
            clients = listening_socket(passed[0], "clients") if passed else None
            asyncio.run(_serve(config, os.environ, verbosity, metrics, Throttle(throttle), clients, sys.argv[1]))
        except (ConfigError, MirrorError) as error:
            logging.getLogger(__name__).error("%s", error, extra=log.event("worker.failed"))
            return 2 if isinstance(error, ConfigError) else 1
        except RuntimeError as error:
            if (said := no_thread(error)) is None:
                raise
            logging.getLogger(__name__).error("%s", said, extra=log.event("worker.failed"))
            return 1
    return 0


async def _serve(
    config: Config,
    environ: Mapping[str, str],
    verbosity: Verbosity,
    metrics: Metrics,
    throttle: Throttle,
    passed: socket.socket | None,
    name: str,
) -> None:
    """Serve clients until told to stop or left alone, then drain."""
    tls = ServerTls.of(config.server)
    with Events(metrics) as events:
        async with (
            opened(
                config, environ, needs_store=config.upstream.url is None, metrics=metrics, throttle=throttle, name=name
            ) as mirror,
            _reporting(mirror, Telemetry(metrics, events, mirror.library, mirror.catalog)),
            client_listener(mirror, tls, passed, share_port=True),
        ):
            told = config

            async def read(_: Config) -> Config:
                return told

            reload = Reload(config, read, mirror.parts)

            def hear(line: bytes) -> None:
                nonlocal told
                told = _config(line)
                reload.ask()

            mirror.parts.append(at_once(lambda config: verbosity.take_up(config.log)))
            async with reload.kept(ServiceManager.of(environ)):
                on_signal(signal.SIGUSR1, verbosity.toggle)
                _say(READY)
                hear_keeper(hear)
                await stop_requested()


def _config(line: bytes) -> Config:
    return Config.model_validate(json.loads(line))


@asynccontextmanager
async def _reporting(mirror: Mirror, telemetry: Telemetry) -> AsyncIterator[None]:
    """Tell meanwhile how this worker is, whenever there is something new."""
    loop = asyncio.get_running_loop()

    async def report() -> None:
        said = Report()
        while True:
            await asyncio.sleep(INTERVAL)
            telemetry.tick()
            if (now := telemetry.report()) != said:
                said = now
                await loop.run_in_executor(mirror.pool, _say, now.to_line())

    reporting = asyncio.create_task(report(), name="report")
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        _say(telemetry.report().to_line())


def _say(line: bytes) -> None:
    """Tell whoever keeps us a line; it blocks. If nobody does any more we learn that by standard input."""
    with contextlib.suppress(BrokenPipeError):
        while line:
            line = line[os.write(sys.stdout.fileno(), line) :]


if __name__ == "__main__":
    sys.exit(main())
