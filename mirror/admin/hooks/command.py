"""Runs a command for each event: an argument list, never a shell, with nothing of the mirror's environment.

The event is on its standard input. What it prints goes into the log, line by line. When it ends or its time is over,
its whole process group is ended. Exit status 0 means that the event was taken.
"""

import asyncio
import logging
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mirror.admin.hooks.cloud_event import CloudEvent
from mirror.admin.hooks.target import Undelivered
from mirror.common.log import event
from mirror.common.units import format_duration
from mirror.config import Config, Hook

GRACE = 2.0
"""Seconds from SIGTERM to SIGKILL."""

POLL = 0.02
"""Seconds between two checks whether it has ended."""

LINES = 100
LONGEST_LINE = 2000
"""How many lines of a run's output are logged, and how many bytes of each."""

USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

log = logging.getLogger(__name__)


class Command:
    """A `Target`: the command of a hook. PATH and HOME come from `environ`."""

    def __init__(self, hook: Hook, config: Config, environ: Mapping[str, str]) -> None:
        self._hook = hook
        self._images = config.store.path.absolute() / "images"
        self._environ = {
            "PATH": environ.get("PATH", USUAL_PATH),
            "HOME": environ.get("HOME", str(config.store.path.absolute())),
        }
        self.where = hook.command[0]

    async def deliver(self, cloud_event: CloudEvent) -> str:
        """See `Target.deliver`."""
        image = self._images / (cloud_event.image or "") / "image"
        loop = asyncio.get_running_loop()
        there = cloud_event.image is not None and await loop.run_in_executor(None, Path.is_file, image)
        process = await self._start(
            {
                "PPS_MIRROR_EVENT": cloud_event.type,
                "PPS_MIRROR_HASH": cloud_event.image or "",
                "PPS_MIRROR_IMAGE": str(image) if there else "",
                "PPS_MIRROR_TAGS": " ".join(cloud_event.tags),
                **self._environ,
            }
        )
        talking = asyncio.gather(self._give(process, cloud_event.body), self._log_output(process))
        try:
            async with asyncio.timeout(self._hook.timeout):
                status = await _ended(process)
        except TimeoutError:
            raise Undelivered(f"{self.where} did not end within {format_duration(self._hook.timeout)}") from None
        finally:
            await _end(process)
            await asyncio.wait([talking], timeout=GRACE)  # until whoever has its output has ended
            talking.cancel()
        if status == 0:
            return f"{self.where} ended well"
        said = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
        raise Undelivered(f"{self.where} {said}")

    async def close(self) -> None:
        """See `Target.close`: there is nothing to let go of."""

    async def _start(self, environ: Mapping[str, str]) -> Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._hook.command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=STDOUT,
                env=environ,
                cwd="/",
                limit=LONGEST_LINE,
                start_new_session=True,
            )
        except OSError as error:
            raise Undelivered(f"{self.where} cannot be run: {error.strerror}") from None

    async def _give(self, process: Process, body: bytes) -> None:
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        with suppress(ConnectionError):  # it need not read it
            process.stdin.write(body + b"\n")
            await process.stdin.drain()
        process.stdin.close()

    async def _log_output(self, process: Process) -> None:
        """Log what it prints until it, or whoever has its standard output, closes that."""
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        count = 0
        while line := await _line(process.stdout):
            count += 1
            said = line.decode("utf-8", "replace").rstrip()
            if count == LINES + 1:
                said = f"more than {LINES} lines, the rest is not logged"
            if count <= LINES + 1:
                said = f"{self._hook.name}: {said}"  # a message of its own, or it would be held back as a repeated one
                log.info(said, extra=event("hook.output", hook=self._hook.name))


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line, or as much of a long one as is logged at a time; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(min(error.consumed, LONGEST_LINE) or 1)


async def _end(process: Process) -> None:
    """End all processes of its group: at once what it left behind when it has ended, else after `GRACE` seconds."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await _ended(process)
    _signal(process, signal.SIGKILL)
    await _ended(process)


async def _ended(process: Process) -> int:
    """Return the exit status when it has ended. `Process.wait` may also wait for whoever has its output."""
    while (status := process.returncode) is None:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(POLL)
    return status


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
