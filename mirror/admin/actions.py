"""What an operator may do to a running mirror: fetch now, pin, verify and remove images.

What takes long runs in the background; the status page shows its outcome as an event.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from mirror.admin.audit import Audit
from mirror.common.log import event
from mirror.common.tasks import finished
from mirror.images.scrub import quarantined
from mirror.model.errors import BadRequest, MirrorError, UsageError
from mirror.model.status import AuditLine, Done
from mirror.store.disk.verification import Verdict
from mirror.wiring.mirror import Mirror
from mirror.wiring.selection import Selection, lines_of

INSIST = "send the request with ?force=true, or give pps-mirror rm --force,"
"""How to insist on removing a pinned or current image. The page has no button for that."""

log = logging.getLogger(__name__)


class Operator:
    """Acts on `mirror`. `prefetch` begins to fetch the current image; `changed` is called after each action."""

    def __init__(
        self, mirror: Mirror, prefetch: Callable[[], Awaitable[Done]], changed: Callable[[], None] = lambda: None
    ) -> None:
        self._mirror = mirror
        self._prefetch = prefetch
        self._changed = changed
        self._verifying: dict[str, asyncio.Task[None]] = {}
        self._audit = Audit(mirror.config.store.path)

    async def recorded(self, who: str, action: str, what: str, change: Callable[[], Awaitable[Done]]) -> Done:
        """Do `change`, and record who wanted it, what it was about and how it ended. Raises MirrorError."""
        outcome = "did not end"
        try:
            done = await change()
            outcome, what = done.message, done.image or what
        except MirrorError as error:
            outcome = f"failed: {error}"
            raise
        finally:
            loop = asyncio.get_running_loop()
            await finished(loop.run_in_executor(self._mirror.pool, self._audit.note, who, action, what, outcome))
            self._changed()
        return done

    async def audit(self, most: int) -> Sequence[AuditLine]:
        """Return what operators did last, newest first."""
        return await asyncio.get_running_loop().run_in_executor(self._mirror.pool, self._audit.last, most)

    async def prefetch(self) -> Done:
        """Begin to fetch the current image unless it is stored. Returns what was done. Raises MirrorError."""
        return await self._prefetch()

    async def pin(self, name: str, *, pinned: bool) -> Done:
        """Pin or unpin an image. Returns what was done. Raises MirrorError."""
        image_hash = await self._on_selection(lambda selection: selection.pin(name, pinned=pinned))
        done = "pinned" if pinned else "unpinned"
        log.info("%s was %s", image_hash, done, extra=event(f"image.{done}", image=image_hash))
        return Done(f"{image_hash[:12]} is {done}", image_hash)

    async def remove(self, name: str, *, force: bool) -> Done:
        """Remove an image. Returns what was done. Raises MirrorError."""
        image_hash = await self._on_selection(lambda selection: selection.remove(name, force=force, insist=INSIST))
        log.info("%s was removed", image_hash, extra=event("image.removed", image=image_hash))
        return Done(f"{image_hash[:12]} is removed", image_hash)

    async def verify(self, name: str) -> Done:
        """Begin to verify an image again. Returns that it began. Raises MirrorError."""

        async def begin(selection: Selection) -> str:
            image_hash = selection.find(name)
            if image_hash not in self._verifying:
                task = asyncio.create_task(self._verify(selection, image_hash), name=f"verify {image_hash}")
                self._verifying[image_hash] = task
                task.add_done_callback(lambda _: self._verifying.pop(image_hash, None))
            return image_hash

        image_hash = await self._on_selection(begin)
        return Done(f"{image_hash[:12]} is being verified; the outcome will be among the events", image_hash)

    async def close(self) -> None:
        """Stop the verifications that run."""
        tasks = tuple(self._verifying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _on_selection(self, action: Callable[[Selection], Awaitable[str]]) -> str:
        stores = self._mirror.stores
        lines = lines_of(await stores.front.list(), await self._mirror.metadata_cache.known_hash())
        try:
            return await action(await Selection.of(self._mirror.config, stores, lines))
        except UsageError as error:
            raise BadRequest(str(error)) from None
        finally:
            self._changed()

    async def _verify(self, selection: Selection, image_hash: str) -> None:
        try:
            for name, place in selection.places(image_hash):
                verified = await place.verify(image_hash)
                good = verified.verdict is Verdict.GOOD
                if not good:
                    self._mirror.metrics.unverified.labels("scrub").inc()
                if verified.bad:
                    self._mirror.notify(quarantined(verified))
                said = event("image.verified" if good else "image.bad", image=image_hash, place=name)
                log.log(
                    logging.INFO if good else logging.ERROR,
                    "%s was verified (%s): %s",
                    image_hash,
                    name,
                    "good" if good else f"{verified.verdict}: {verified.detail}",
                    extra=said,
                )
        except MirrorError as error:
            log.error("%s cannot be verified: %s", image_hash, error, extra=event("image.unverified", image=image_hash))
        finally:
            self._changed()
