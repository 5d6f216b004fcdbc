"""Starts, watches, restarts and stops worker processes, which serve clients from one port and one store.

Workers share only the store and some memory. There is one fill for each image among them, because its partial has one
lock (see `mirror.store.disk.partial_file`). A worker reads its configuration from standard input; each further line is
another configuration, and the end of the input means that the first process has ended. The worker writes `ready` to
standard output once it serves, and then a line every second (see `mirror.admin.worker_report`), by which the first
process knows that it is not frozen.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

from mirror.common.log import event
from mirror.config import Config
from mirror.model.errors import ConfigError

RESTART = (0.1, 10.0)
"""Seconds before a dead worker is replaced: the first time, and at most when workers keep dying."""

SETTLED = 10.0
"""Seconds after which the death of a worker does not count as a failed start."""

GRACE = 5.0
"""Seconds after `server.drain` before workers that do not stop are killed."""

READY = b"ready\n"
"""The line by which a worker says that it serves."""

NOTHING_NEW = b"\n"
"""The line of a worker that has nothing to report, but runs."""

ALIVE = 1.0
"""Seconds between two lines of a worker, which it writes as long as its event loop runs."""

SILENT = 10
"""How many lines in a row may be missing before a worker counts as missing.

They are counted, not timed: whatever stops all processes (a sleeping machine, a paused container) stops the count too.
"""

FROZEN = 30
"""How many lines in a row may be missing before a worker is killed and replaced."""

LONGEST_LINE = 4 << 20
"""The most bytes that a line of a worker may have."""

Heard = Callable[[int, bytes | None], None]
"""Is called with a worker's number and a line that it wrote, or None when it has ended."""

_OURS = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"}
)
"""Variables that the service manager set for this process only."""

log = logging.getLogger(__name__)


class ClientProcesses(Protocol):
    """The processes that serve clients: workers, or this one alone. A context manager; they serve inside.

    `count` is how many there are, `port` where they listen.
    """

    count: int
    port: int

    @property
    def missing(self) -> int:
        """How many of them do not serve at the moment."""

    def toggle_debugging(self) -> None:
        """Switch debug logging on or off in all processes but this one, and in those that start later."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


class Workers:
    """As many processes as `config.server.workers` says. A context manager: they serve inside, and have ended after it.

    They share the mirror's `name` and, by the descriptors `shared`, memory with this process. All accept connections
    from `sockets`: the first that is free takes the next client, and clients wait while no worker runs. The sockets are
    closed when the workers stop. `died` is called when a worker ends by itself.
    """

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        shared: Sequence[int],
        name: str,
        heard: Heard,
        sockets: Sequence[socket.socket],
        died: Callable[[], None],
    ) -> None:
        self.count = config.server.workers
        self.port = int(sockets[0].getsockname()[1])
        self._name = name
        self._config = config
        self._sockets = sockets
        self._descriptors = [*shared, *(each.fileno() for each in sockets)]
        self._heard = heard
        self._died = died
        self._environ = {name: value for name, value in environ.items() if name not in _OURS}
        self._processes: dict[int, Process] = {}
        self._serving: set[int] = set()
        self._outdated: set[int] = set()
        self._unheard: dict[int, int] = {}
        self._watching: asyncio.Task[None] | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._debugging = False

    @property
    def missing(self) -> int:
        """See `ClientProcesses`."""
        return self.count - sum(self._unheard[number] < SILENT for number in self._serving)

    async def __aenter__(self) -> Self:
        started = [asyncio.Event() for _ in range(self.count)]
        self._keepers = [
            asyncio.create_task(self._keep(number, event), name=f"worker {number}")
            for number, event in enumerate(started, 1)
        ]
        self._watching = asyncio.create_task(self._watch(), name="watch workers")
        starting = asyncio.create_task(_all(started))
        try:
            await asyncio.wait([starting, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                raise ConfigError("a worker cannot start; it has said why")
        except BaseException:
            await self._stop()
            raise
        finally:
            starting.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    def reload(self, config: Config) -> None:
        """Make all workers apply the configuration and read their files again; starting ones once they serve."""
        self._config = config
        self._outdated = set(self._processes) - self._serving
        for worker in self._serving:
            self._give_config(self._processes[worker])

    def toggle_debugging(self) -> None:
        """See `ClientProcesses`."""
        self._debugging = not self._debugging
        self._tell(signal.SIGUSR1)

    def _tell(self, number: signal.Signals) -> None:
        """Send a signal to the workers that serve; others have no handler for it yet."""
        for worker in self._serving:
            _send(self._processes[worker], number)

    def _give_config(self, process: Process) -> None:
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        process.stdin.write(self._config.model_dump_json().encode() + b"\n")

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            _send(process, number)

    async def _stop(self) -> None:
        self._stopping.set()
        if self._watching is not None:
            self._watching.cancel()
        for each in self._sockets:  # otherwise new clients would wait for a worker that never comes
            each.close()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._config.server.drain + GRACE):
                await asyncio.gather(*self._keepers, return_exceptions=True)
        except TimeoutError:
            log.error("workers do not stop: killing them", extra=event("worker.killed"))
            self._signal(signal.SIGKILL)
            await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _watch(self) -> None:
        """Count the missing lines of each worker that serves, and kill one that has been silent for too long."""
        while True:
            await asyncio.sleep(ALIVE)
            for number in self._serving:
                self._unheard[number] += 1
                if self._unheard[number] == SILENT:
                    silent = event("worker.silent", worker=number)
                    log.warning("worker %d does not answer: it may be frozen", number, extra=silent)
                elif self._unheard[number] >= FROZEN:
                    killed = event("worker.frozen", worker=number)
                    log.error("worker %d has been frozen for %d s: killing it", number, FROZEN, extra=killed)
                    self._unheard[number] = SILENT  # it may take long to die while its disk hangs
                    _send(self._processes[number], signal.SIGKILL)

    async def _keep(self, number: int, started: asyncio.Event) -> None:
        """Run one worker after another until the mirror stops, or until the first one cannot start."""
        clock = asyncio.get_running_loop().time
        first, most = RESTART
        delay = first
        while True:
            began = clock()
            status = await self._run(number, started)
            if self._stopping.is_set() or (status == 2 and not started.is_set()):
                return
            delay = first if clock() - began > SETTLED else min(most, delay * 2)
            self._died()
            died = event("worker.died", worker=number, status=status)
            log.error("worker %d ended with status %d; another one starts in %.1f s", number, status, delay, extra=died)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
                    return

    async def _run(self, number: int, started: asyncio.Event) -> int:
        """Run one worker to its end. Returns its exit status, or the negative number of the signal that ended it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "mirror.serve.worker", self._name, *map(str, self._descriptors)),
            pass_fds=self._descriptors,
            stdin=PIPE,
            stdout=PIPE,
            env=self._environ,
            limit=LONGEST_LINE,
            process_group=0,  # signals of a terminal go to us alone, and we pass them on
        )
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        self._processes[number] = process
        if self._stopping.is_set():
            process.terminate()
        try:
            self._give_config(process)
            if await process.stdout.readline() == READY:
                log.info(
                    "worker %d serves, process %d", number, process.pid, extra=event("worker.started", worker=number)
                )
                self._unheard[number] = 0
                self._serving.add(number)
                started.set()
                if self._debugging:
                    _send(process, signal.SIGUSR1)
                if number in self._outdated:
                    self._outdated.remove(number)
                    self._give_config(process)
                async for line in process.stdout:
                    self._unheard[number] = 0
                    if line != NOTHING_NEW:
                        self._heard(number, line)
            return await process.wait()
        finally:
            self._heard(number, None)
            self._serving.discard(number)
            del self._processes[number]


async def _all(events: Sequence[asyncio.Event]) -> None:
    for each in events:
        await each.wait()


def _send(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
