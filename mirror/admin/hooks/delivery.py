"""Delivers what is queued: for each hook one event after another, tried again until it is taken or given up.

One process of a store delivers: the one that has the lock beside the queues. When that process ends, however it ends,
another one that waits for the lock goes on.
"""

import asyncio
import fcntl
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mirror.admin.hooks.cloud_event import CloudEvent
from mirror.admin.hooks.queue import Queue
from mirror.admin.hooks.target import Target, Undelivered
from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.common.units import DAY, format_duration
from mirror.model.status import HookLine

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 900.0
"""Seconds before the second attempt, and at most before any; each pause is twice the one before."""

GIVE_UP = DAY
"""Seconds after which an event that is not taken is given up."""

LEAST_TRIES = 5
"""How often an event is tried all the same: a clock that was set may say that it is old."""

LOOK = 1.0
"""Seconds between two looks for events that other processes have queued, and for the lock."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """A hook, by its name: from which queue its events come, and where they go.

    `moved` is set when there may be a new one.
    """

    name: str
    queue: Queue
    target: Target
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class Delivery:
    """Delivers from the queues in `directory` while `running` lasts. `take_up` says which there are."""

    def __init__(self, directory: Path, metrics: Metrics) -> None:
        self._directory = directory
        self._metrics = metrics
        self._lines: dict[str, HookLine] = {}
        self._routes: Sequence[Route] = ()
        self._tasks: Sequence[asyncio.Task[None]] = ()
        self._thread = ThreadPoolExecutor(2, "hooks")
        self._lock: int | None = None

    async def lines(self) -> Sequence[HookLine]:
        """Return how each hook is doing. While the disk hangs, the numbers of events that wait are older ones."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LOOK):
                for route in self._routes:
                    _, queued = await self._blocking(route.queue.look)
                    self._note(route, queued=queued)
        return list(self._lines.values())

    def moved(self) -> None:
        """Look at once whether something was queued."""
        for route in self._routes:
            route.moved.set()

    def take_up(self, routes: Sequence[Route]) -> None:
        """Deliver by these from now on. What was being delivered by others is tried again; the same ones just go on."""
        running = {id(route): task for route, task in zip(self._routes, self._tasks, strict=True)}
        kept = {key: task for key, task in running.items() if any(id(route) == key for route in routes)}
        former = [task for key, task in running.items() if key not in kept]
        for task in former:
            task.cancel()
        lines = [self._lines.get(route.name, HookLine(route.name, "")) for route in routes]
        self._lines = {
            route.name: line
            if id(route) in kept
            else replace(line, where=route.target.where, trouble=None, next_at=None)
            for route, line in zip(routes, lines, strict=True)
        }
        self._routes = routes
        self._tasks = [
            kept.get(id(route)) or asyncio.create_task(self._run(route, former), name=f"hook {route.name}")
            for route in routes
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver while the context lasts."""
        try:
            yield
        finally:
            tasks, routes = self._tasks, self._routes
            self.take_up(())
            await asyncio.gather(*tasks, return_exceptions=True)
            for route in routes:  # a task that had not begun has not closed it
                await route.target.close()
            self._thread.shutdown(wait=False)
            if self._lock is not None:
                os.close(self._lock)

    async def _run(self, route: Route, former: Sequence[asyncio.Task[None]]) -> None:
        try:
            await asyncio.gather(*former, return_exceptions=True)
            while not await self._blocking(self._may_deliver):  # noqa: ASYNC110 - nothing tells when another has ended
                await asyncio.sleep(LOOK)
            await self._deliver_all(route)
        finally:
            await route.target.close()

    def _may_deliver(self) -> bool:
        """Return whether this process delivers: unless another one has the lock. Where none can be had, all do."""
        if self._lock is not None:
            return True
        try:
            self._directory.mkdir(exist_ok=True)
            fd = os.open(self._directory / "delivery.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            log.debug("%s cannot be locked: %s", self._directory, error)
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock = fd
        return True

    async def _deliver_all(self, route: Route) -> None:
        tried, tries = None, 0
        while True:
            try:
                body, _ = await self._blocking(route.queue.look)
            except OSError as error:
                log.debug("%s cannot be read: %s", route.queue.file, error)
                body = None
            if body is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await route.moved.wait()
                route.moved.clear()
                continue
            tries = tries + 1 if body == tried else 1
            tried = body
            pause = await self._attempt(route, body, tries)
            if pause is None:
                await self._blocking(partial(route.queue.remove, body))
            else:
                await asyncio.sleep(pause)

    async def _attempt(self, route: Route, body: bytes, tries: int) -> float | None:
        """Try to deliver an event. Return None when it is done, else how many seconds to wait."""
        try:
            told = CloudEvent.parse(body)
        except ValueError as error:
            log.warning("%s: a line is left out: %s", route.queue.file, error, extra=event("note.ignored"))
            return None
        about = {"hook": route.name, "kind": told.type, "id": told.id}
        try:
            said = await route.target.deliver(told)
        except Undelivered as error:
            failure = error
        except Exception:
            log.exception("the hook %s cannot be told", route.name, extra=event("mirror.mistake"))
            failure = Undelivered("the mirror made a mistake; its log says more")
        else:
            self._count(route, "delivered")
            self._note(route, delivered_at=datetime.now(UTC), trouble=None, next_at=None)
            log.info("hook %s: %s: %s", route.name, told.type, said, extra=event("hook.delivered", **about))
            return None
        self._count(route, "failed")
        age = told.age(datetime.now(UTC))
        if failure.never or (age > GIVE_UP and tries >= LEAST_TRIES):
            self._count(route, "given_up")
            count = self._lines[route.name].given_up + 1
            self._note(route, trouble=f"{told.type} was given up: {failure}", next_at=None, given_up=count)
            given_up = event("hook.given_up", **about)
            log.error("hook %s: %s is given up: %s", route.name, told.type, failure, extra=given_up)
            return None
        pause = _pause(tries, failure.retry_after)
        self._note(route, trouble=str(failure), next_at=datetime.now(UTC) + timedelta(seconds=pause))
        log.warning(
            "hook %s: %s is tried again in %s: %s",
            *(route.name, told.type, format_duration(pause), failure),
            extra=event("hook.failed", **about),
        )
        return pause

    def _note(self, route: Route, **changed: Any) -> None:
        if route.name in self._lines:
            self._lines[route.name] = replace(self._lines[route.name], **changed)

    def _count(self, route: Route, outcome: str) -> None:
        self._metrics.hook_deliveries.labels(route.name, outcome).inc()

    async def _blocking(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _pause(tries: int, at_least: float) -> float:
    """Return for how many seconds to wait after that many attempts, not the same for all mirrors of a site."""
    pause: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries - 1, 20))
    return max(at_least, pause * random.uniform(0.8, 1.0))  # noqa: S311 - it is no secret
