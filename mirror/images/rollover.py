"""Gives clients a new image only once it is stored, with `rollover = "when_stored"`; until then they get the last one.

They switch when the new image is in the store, whichever process brought it there; from then on no client gets the old
one. What they get is written to `shown.json` whenever it changes, so that it survives a restart and every process of
the store agrees. Without that file, the last image is the one that was current, or else the newest stored one.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from mirror.common.files import write_durably
from mirror.common.log import event
from mirror.model.caller import Caller
from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note
from mirror.model.notification import Kind, Notification, Notify, tell_nobody
from mirror.store.base import BlobStore, StoreUnavailable

Bring = Callable[[ImageMetadata, Caller], None]
"""Begins to bring an image into the store, without waiting for it."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def became_current(metadata: ImageMetadata) -> Notification:
    """Make the notification that clients get this image from now on if they name none."""
    return Notification.about(Kind.IMAGE_CURRENT, metadata, f"{metadata.hash} is the current image")


class WhenStored:
    """Chooses between upstream's newest image and the last that clients got; the file `note` names the latter.

    If fetching a new image fails, it is fetched again at the first request after `pause` seconds.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        bring: Bring,
        pause: float,
        note: Path,
        pool: Executor,
        notify: Notify = tell_nobody,
    ) -> None:
        self._store = store
        self._bring = bring
        self._notify = notify
        self.pause = pause
        self._note = note
        self._pool = pool
        self._shown: ImageMetadata | None = None
        self._noted: str | None = None
        self._pending: str | None = None
        self._tried: tuple[str, float] | None = None

    async def load(self, current: ImageMetadata | None) -> None:
        """Load what an earlier process showed, or what was `current` then if it was shown at once."""
        self._shown = await self._read() or current

    async def show(self, newest: ImageMetadata, caller: Caller | None) -> ImageMetadata:
        """Return what clients get now. If that is not the newest, fetch the newest with the caller's credential.

        The last image is no longer shown when the store has lost it, or fails.
        """
        if self._shown is not None and self._shown.hash == newest.hash:
            self._shown, self._pending = newest, None
            return newest
        # Another process may have changed what is shown since we read it.
        last = self._shown if self._pending == newest.hash else await self._last()
        if last is None or last.hash == newest.hash:
            return await self._switch(newest, None)
        if await self._has(newest):
            return await self._switch(newest, f"{newest.hash} is stored: clients get it now")
        if not await self._holds(last):
            gone = f"{last.hash} is not stored: clients get {newest.hash} while it arrives"
            return await self._switch(newest, gone)
        if self._shown is not None and self._shown.hash == newest.hash:
            return newest  # another request has switched while we looked
        if self._pending != newest.hash:
            self._pending = newest.hash
            log.info(
                "upstream has a new image %s: clients get %s until it is stored",
                newest.hash,
                last.hash,
                extra=event("image.announced", image=newest.hash),
            )
        self._shown = last
        await self._write()
        if caller is not None:
            self._try(newest, caller)
        return last

    async def shown_hash(self, newest: ImageMetadata | None) -> str | None:
        """Return the hash of what clients get, as far as is known, without starting anything."""
        last = await self._last()
        if newest is None or (last is not None and not await self._has(newest) and await self._holds(last)):
            return last.hash if last else None
        return newest.hash

    async def _switch(self, newest: ImageMetadata, said: str | None) -> ImageMetadata:
        before, self._shown, self._pending = self._shown, newest, None
        if said is not None and (before is None or before.hash != newest.hash):  # otherwise another request was quicker
            log.info("%s", said, extra=event("image.switched", image=newest.hash))
        if before is None or before.hash != newest.hash:
            self._notify(became_current(newest))
        await self._write()
        return newest

    def _try(self, newest: ImageMetadata, caller: Caller) -> None:
        now = asyncio.get_running_loop().time()
        if self._tried is None or self._tried[0] != newest.hash or now - self._tried[1] >= self.pause:
            self._tried = newest.hash, now
            self._bring(newest, caller)

    async def _has(self, metadata: ImageMetadata) -> bool:
        try:
            return await self._store.has(metadata.hash)
        except StoreUnavailable:
            return False

    async def _holds(self, metadata: ImageMetadata) -> bool:
        """Return whether the store has it, maybe as bytes that have to be verified again."""
        try:
            return await self._has(metadata) or any(
                info.metadata.hash == metadata.hash for info in await self._store.list()
            )
        except StoreUnavailable:
            return False

    async def _last(self) -> ImageMetadata | None:
        if last := await self._read() or self._shown:
            return last
        try:
            images = await self._store.list()
        except StoreUnavailable:
            return None
        return images[0].metadata if images else None

    async def _read(self) -> ImageMetadata | None:
        try:
            note = Note.parse(await self._blocking(self._note.read_bytes))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s is left alone: %s", self._note, error, extra=event("note.ignored"))
            return None
        self._noted = note.metadata.hash
        return note.metadata

    async def _write(self) -> None:
        if self._shown is None or self._shown.hash == self._noted:
            return
        self._noted = self._shown.hash
        note = Note(self._shown).to_bytes()
        try:
            await self._blocking(lambda: write_durably(self._note, note))
        except OSError as error:
            self._noted = None
            log.warning("%s cannot be written: %s", self._note, error, extra=event("note.unwritten"))

    async def _blocking(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)
