"""The program of a worker: one of several processes that serve clients. `mirror.process.workers` starts it.

Its arguments are the mirror's name, which all workers share (see `mirror.upstream.loop_detection`), and the numbers of
inherited descriptors: the throttle's, those of other shared memory, and those of the sockets to serve.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager

from mirror.admin.hooks.publisher import Publisher
from mirror.admin.recent_events import Events
from mirror.admin.worker_report import Report, Telemetry
from mirror.common import log
from mirror.common.log import Verbosity
from mirror.common.metrics import Metrics
from mirror.config import Config
from mirror.config.reloadable import at_once
from mirror.http.tls import ServerTls
from mirror.model.errors import ConfigError, MirrorError, no_thread
from mirror.process import asyncio_errors
from mirror.process.reload import Reload
from mirror.process.signals import hear_keeper, on_signal, stop_requested
from mirror.process.systemd import ServiceManager, listening_socket
from mirror.process.workers import ALIVE, NOTHING_NEW, READY
from mirror.serve.client_listener import ClientListener
from mirror.upstream.rate_limit import Throttle
from mirror.wiring.mirror import Shared, open_mirror


def main() -> int:
    """Serve until told to stop, or until the first process has ended. Returns the exit status."""
    config = _config(sys.stdin.buffer.readline())
    metrics = Metrics()
    with log.written_aside(config.log.level, config.log.format) as (verbosity, writer):
        writer.count_lost_with(metrics.log_lines_lost.inc)
        try:
            throttle, refused, wrong, indexing, *passed = map(int, sys.argv[2:])
            clients = [listening_socket(each, "clients") for each in passed]
            shared = Shared.of((refused, wrong, indexing))
            asyncio.run(
                _serve(config, os.environ, verbosity, metrics, Throttle(throttle), shared, clients, sys.argv[1])
            )
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
    shared: Shared,
    passed: Sequence[socket.socket],
    name: str,
) -> None:
    """Serve clients until told to stop, or until the first process has ended, then drain."""
    asyncio.get_running_loop().set_exception_handler(asyncio_errors.report)
    tls, publisher = ServerTls.of(config.server), Publisher(config, metrics)
    with Events() as events:
        async with (
            publisher.running(),
            open_mirror(
                config,
                environ,
                needs_store=config.upstream.url is None,
                metrics=metrics,
                throttle=throttle,
                shared=shared,
                name=name,
                notify=publisher,
            ) as mirror,
            _reporting(
                Telemetry(metrics, events, mirror.library, mirror.metadata_cache, mirror.stores, publisher.let_go)
            ),
            ClientListener(mirror, tls, passed, verbosity.output),
        ):
            told = config

            async def read(_: Config) -> Config:
                return told

            reload = Reload(config, read, mirror.parts)

            def hear(line: bytes) -> None:
                nonlocal told
                told = _config(line)
                reload.ask()

            mirror.parts.append(at_once(publisher.take_up))
            mirror.parts.append(at_once(lambda config: verbosity.take_up(config.log.level, config.log.format)))
            async with reload.kept(ServiceManager.of(environ)):
                stop = stop_requested()
                on_signal(signal.SIGUSR1, verbosity.toggle)
                _say(READY)
                hear_keeper(hear)
                await stop.wait()


def _config(line: bytes) -> Config:
    return Config.model_validate(json.loads(line))


@asynccontextmanager
async def _reporting(telemetry: Telemetry) -> AsyncIterator[None]:
    """Send a line to the first process every second while the context lasts: a report, or that nothing is new."""
    loop = asyncio.get_running_loop()

    async def report(thread: Executor) -> None:
        said = Report()
        while True:
            await asyncio.sleep(ALIVE)
            line = NOTHING_NEW
            try:
                telemetry.tick()
                if (now := telemetry.report()) != said:
                    said, line = now, now.to_line()
            except Exception:
                logging.getLogger(__name__).exception(
                    "a worker cannot tell how it is", extra=log.event("mirror.mistake")
                )
            await loop.run_in_executor(thread, _say, line)

    # Not one of the threads that wait for the disk: a worker whose disk hangs must not count as frozen.
    thread = ThreadPoolExecutor(1, "report")
    reporting = asyncio.create_task(report(thread), name="report")
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        thread.shutdown()
        _say(telemetry.report().to_line())


def _say(line: bytes) -> None:
    """Send a line to the first process; blocks. If that has ended, standard input tells us, so errors are ignored."""
    with contextlib.suppress(BrokenPipeError):
        while line:
            line = line[os.write(sys.stdout.fileno(), line) :]


if __name__ == "__main__":
    sys.exit(main())
