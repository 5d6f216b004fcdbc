"""Runs tasks and threads that must be waited for: those that outlive a call, and those that use what it will close."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finished(step: "asyncio.Future[T]") -> T:
    """Return what the step returns. When cancelled, wait for the step first, and raise CancelledError then.

    So the caller does not close a file that a thread still uses.
    """
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        raise


async def let_end(step: "asyncio.Future[Any]") -> None:
    """Wait until a step has ended whose result nobody wants any more, and which asyncio would report otherwise."""
    await asyncio.wait([step])
    if not step.cancelled():
        step.exception()  # marks it as retrieved


class BackgroundTasks:
    """Tasks that outlive the call that starts them. They belong to this object until they end or are stopped."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` as a task of that name."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def busy(self) -> bool:
        """Whether a task still runs."""
        return bool(self._tasks)

    async def settled(self) -> None:
        """Wait until no task runs any more."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
