"""The one duty of process 1: to take note of the end of processes that lost their parent.

In a container the mirror is process 1 (unless it runs with `--init`), and what somebody started there by `docker exec`
and left behind becomes its child; nobody else can clear that away when it ends.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

INTERVAL = 5.0
"""Seconds between two looks. What is dead in both is nobody's: our own children are waited for at once."""


@asynccontextmanager
async def reaping() -> AsyncIterator[None]:
    """Clear them away meanwhile, if that is upon us."""
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
    """Those that have ended and were not waited for. Of /proc, which no disk can make slow."""
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
