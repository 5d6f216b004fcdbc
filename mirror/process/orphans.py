"""Reaps orphaned processes when the mirror is process 1.

In a container the mirror is process 1 (unless it runs with `--init`). A process that somebody started there by `docker
exec` and left behind becomes its child, and nobody else can reap it when it ends.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

INTERVAL = 5.0
"""Seconds between two checks. A child that is dead in both is an orphan: our own are waited for at once."""


@asynccontextmanager
async def reaping() -> AsyncIterator[None]:
    """Reap orphans while the context lasts, if this is process 1."""
    if os.getpid() != 1:
        yield
        return
    task = asyncio.create_task(_reap(), name="orphans")
    try:
        yield
    finally:
        task.cancel()


async def _reap() -> None:
    seen: set[int] = set()
    while True:
        dead = _dead_children()
        for pid in dead & seen:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
        seen = dead - seen
        await asyncio.sleep(INTERVAL)


def _dead_children() -> set[int]:
    """Return the children that have ended and were not waited for, from /proc, which never waits for a disk."""
    dead = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            dead |= {int(pid) for pid in (task / "children").read_text().split() if _is_dead(pid)}
    return dead


def _is_dead(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
