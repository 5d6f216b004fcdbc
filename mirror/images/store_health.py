"""Tracks whether the store works: logs a failure once, and checks the store until it works again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime

from mirror.common.log import event
from mirror.model.notification import Kind, Notification, Notify, tell_nobody
from mirror.model.status import StoreState
from mirror.store.base import Cut, StoreUnavailable

LOOK_AGAIN = 5.0
"""Seconds between two checks whether a store that failed works again."""

LOOK_SECONDS = 20.0
"""Seconds that such a check may take."""

Look = Callable[[], Awaitable[object]]
"""Checks whether the store works again. Raises StoreUnavailable or Cut while it does not."""

log = logging.getLogger(__name__)


class StoreHealth:
    """Tracks whether the store worked when it was last used. `run` runs a task, by its name, until the mirror stops.

    `nameless` says why a verified image could not get its name; it is cleared when an image gets one.
    """

    def __init__(
        self, run: Callable[[Coroutine[None, None, None], str], asyncio.Task[None]], notify: Notify = tell_nobody
    ) -> None:
        self.state = StoreState()
        self.nameless: StoreUnavailable | None = None
        self._run = run
        self._notify = notify
        self._unreadable = False
        self._look: Look | None = None
        self._watching: asyncio.Task[None] | None = None

    def failed(self, error: StoreUnavailable, look: Look | None = None, *, reading: bool = False) -> None:
        """Note that the store failed. It counts as failing until a use of it succeeds, or `look` raises nothing.

        `reading`: it failed to give what it has.
        """
        if self.state.trouble is None:
            log.error(
                "%s; until it is well again images are passed through and not stored",
                error,
                extra=event("store.failing"),
            )
            self._notify(Notification(Kind.STORE_FAILING, error.message))
        self.state = StoreState(error.message, datetime.now(UTC))
        self._unreadable |= reading
        self._look = look
        if look is not None and (self._watching is None or self._watching.done()):
            self._watching = self._run(self._watch(), "watch the store")

    def name_failed(self, error: OSError) -> None:
        """Note that the store took a verified image but could not give it its name."""
        reason = error.strerror or "input/output error"
        self.nameless = StoreUnavailable(
            f"the mirror's store cannot give a verified image its name, below images/: {reason}"
        )
        self.failed(self.nameless)

    def was_read(self) -> None:
        """Note that the store could be read. Whether it also takes images, the next fill will show."""
        if self._unreadable:
            self._recovered("the store can be read again")

    def takes_images(self) -> None:
        """Note that the store began to take an image."""
        self._recovered("the store takes images again")

    def was_named(self) -> None:
        """Note that an image got its name."""
        if self.nameless is not None:
            self.nameless = None
            self._recovered("the store takes images again")

    def _recovered(self, words: str) -> None:
        left = self.nameless.message if self.nameless is not None else None
        if self.state.trouble is not None and left is None:
            log.info("%s", words, extra=event("store.recovered"))
        self.state = StoreState(left, datetime.now(UTC))
        self._unreadable, self._look = False, None

    async def _watch(self) -> None:
        while (look := self._look) is not None:
            await asyncio.sleep(LOOK_AGAIN)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await look()
            except (StoreUnavailable, Cut, TimeoutError) as error:
                log.debug("the store fails still: %s", error)
            else:
                if look is self._look:
                    self._recovered("the store is well again")
