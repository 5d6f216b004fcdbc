"""Reads and writes `current.json` in the bucket, in which replicas tell one another what upstream said last.

So a replica that starts while upstream is away knows what is current. The note says nothing about who may read it.
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
"""Age in seconds from which a note with the same content is written again, since upstream has just confirmed it."""

WRITE_SECONDS = 5.0
"""Seconds that a mirror's start waits for the bucket."""


class BucketNote:
    """A `mirror.images.last_answer.SharedNote`."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._written: tuple[str, float] | None = None

    async def read(self) -> Note | None:
        """Return what is there; None when none can be used, or the bucket does not answer."""
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
        """Write it in the background, unless it was written recently."""
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
