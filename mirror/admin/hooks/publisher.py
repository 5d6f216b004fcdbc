"""Takes notifications from any thread of a process, and queues each for the hooks that want it."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from mirror.admin.hooks.cloud_event import encoded
from mirror.admin.hooks.queue import MOST_IN_MEMORY, Queue
from mirror.admin.hooks.told import told_in
from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.config import Config, Hook
from mirror.model.metadata import ImageMetadata
from mirror.model.notification import Kind, Notification

LAST_WORDS = 5.0
"""Seconds that the end of a process waits until its last notifications are queued: the disk may hang."""

log = logging.getLogger(__name__)


class Publisher:
    """A `mirror.model.notification.Notify`. Notifications are queued while `running` lasts, earlier ones as it begins.

    `moved` is called when something was queued.
    """

    def __init__(self, config: Config, metrics: Metrics, moved: Callable[[], None] = lambda: None) -> None:
        self.queues: dict[str, Queue] = {}
        self._directory = config.store.path / "hooks"
        self._metrics = metrics
        self._moved = moved
        self._routes: Sequence[tuple[Hook, Queue]] = ()
        self._new: deque[Notification] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._ending = False
        self.take_up(config)

    def take_up(self, config: Config) -> None:
        """Queue for these hooks from now on."""
        self.queues = {
            hook.name: self.queues.get(hook.name) or Queue(self._directory / f"{hook.name}.jsonl")
            for hook in config.hooks
        }
        self._routes = [(hook, self.queues[hook.name]) for hook in config.hooks]
        for hook in config.hooks:
            for outcome in ("delivered", "failed", "given_up"):  # at zero, so that the first shows as an increase
                self._metrics.hook_deliveries.labels(hook.name, outcome)

    def __call__(self, notification: Notification) -> None:
        """Take a notification, from any thread."""
        if not self._routes:
            return
        self._new.append(notification)
        while len(self._new) > MOST_IN_MEMORY:
            with suppress(IndexError):  # another thread was quicker
                oldest = self._new.popleft()
                self._give_up({hook.name: 1 for hook, _ in self._routes if oldest.kind in hook.events})
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._woken.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Publisher"]:
        """Queue notifications in the background while the context lasts, and what is left at its end."""
        self._loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "hooks")
        queueing = asyncio.create_task(self._run(thread), name="hooks")
        try:
            yield self
        finally:
            self._ending = True
            self._woken.set()
            await asyncio.wait([queueing], timeout=LAST_WORDS)
            queueing.cancel()
            thread.shutdown(wait=False)

    def catch_up(self, current: ImageMetadata | None, stored: Sequence[ImageMetadata]) -> None:
        """Tell what a process that was killed could not tell any more. Blocks.

        `stored` are the images on the disk, none in a fleet: there another mirror has told of them.
        """
        if not self._routes:
            return
        with told_in(self._directory) as told:
            missed = told.missed([metadata.hash for metadata in stored])
        for metadata in stored:
            if metadata.hash in missed:
                self(Notification.about(Kind.IMAGE_STORED, metadata, f"{metadata.hash} is stored"))
        if current is not None:
            self(Notification.about(Kind.IMAGE_CURRENT, current, f"{current.hash} is the current image"))

    def let_go(self) -> Mapping[str, Sequence[bytes]]:
        """Take out the events that are in memory because the disk takes none: another process gets them."""
        return {name: events for name, queue in self.queues.items() if (events := queue.let_go())}

    def keep(self, events: Mapping[str, Sequence[bytes]]) -> None:
        """Keep the events in memory that another process of the mirror had let go."""
        self._give_up({name: self.queues[name].keep(each) for name, each in events.items() if name in self.queues})
        self._moved()

    async def _run(self, thread: ThreadPoolExecutor) -> None:
        while True:
            try:
                if self._new:
                    await asyncio.get_running_loop().run_in_executor(thread, self._queue_all)
            except Exception:
                log.exception("an event cannot be queued for hooks", extra=event("mirror.mistake"))
            self._moved()
            if self._ending and not self._new:
                return
            if not self._ending:
                await self._woken.wait()
            self._woken.clear()

    def _queue_all(self) -> None:
        new = [self._new.popleft() for _ in range(len(self._new))]
        if not new:
            return
        with told_in(self._directory) as told:
            events = [(news.kind, encoded(news)) for each in new if (news := told.news(each)) is not None]
            for hook, queue in self._routes:
                if wanted := [body for kind, body in events if kind in hook.events]:
                    self._give_up({hook.name: queue.put(wanted)})

    def _give_up(self, numbers: Mapping[str, int]) -> None:
        for name, number in numbers.items():
            if number:
                self._metrics.hook_deliveries.labels(name, "given_up").inc(number)
                said = event("hook.given_up", hook=name, events=number)
                log.error("%d events for the hook %s are given up: too many wait", number, name, extra=said)
