"""`current.json` in the bucket: what replicas tell one another of what upstream said last.

So one that starts while upstream is away knows what is current. It carries nothing of who may read it.
"""

import asyncio
import logging
import time

from mirror.common.log import event
from mirror.model.note import Note
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.store import S3Store

log = logging.getLogger(__name__)

NAME = "current.json"

AGAIN = 600.0
"""Age in seconds from which what is written there already is written again, since upstream has just said it again."""

WRITE_SECONDS = 5.0
"""Seconds that a mirror's start waits for the bucket."""


class BucketNote:
    """A `mirror.images.last_answer.SharedNote`."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._written: tuple[str, float] | None = None

    async def read(self) -> Note | None:
        """What is there; None when there is nothing that can be used, or no answer."""
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                answer = await self._store.bucket.get(NAME)
            return Note.parse(answer.data) if answer is not None else None
        except (BucketFailed, TimeoutError) as error:
            log.warning("what is current cannot be read from the bucket: %s", error, extra=event("note.unread"))
        except ValueError as error:
            log.warning("%s in the bucket is left alone: %s", NAME, error, extra=event("note.ignored"))
        return None

    def write(self, note: Note) -> None:
        """Write it in the background, unless it was written lately."""
        now = time.monotonic()
        if self._written is not None:
            image_hash, when = self._written
            if image_hash == note.metadata.hash and now - when < AGAIN:
                return
        self._written = note.metadata.hash, now
        self._store.background.start(self._write(note), "write what is current")

    async def _write(self, note: Note) -> None:
        try:
            await self._store.bucket.put(NAME, note.to_bytes())
        except BucketFailed as error:
            self._written = None
            log.debug("what is current cannot be written to the bucket: %s", error)
