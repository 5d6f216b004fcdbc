"""Keeps what upstream said last, in `current.json` on the disk and in the note that a fleet shares.

So a mirror that starts while upstream is away still knows what to serve.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from mirror.common.clock import Clock
from mirror.common.files import write_durably
from mirror.common.log import event
from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note

T = TypeVar("T")

log = logging.getLogger(__name__)


class SharedNote(Protocol):
    """A place where the mirrors of a fleet keep the last known answer for one another."""

    async def read(self) -> Note | None:
        """Return what is there; None when there is nothing, or the place cannot be reached."""

    def write(self, note: Note) -> None:
        """Write it in the background, if that is possible."""


class LastAnswer:
    """The `metadata` that upstream gave last, to any process of this store, and the moment when it was `said`.

    `note` is the file; `shared` is where a fleet keeps it, if there is a fleet. With `timeless` there is no upstream:
    nothing gets stale, and what a note says is current whenever it was written.
    """

    def __init__(self, note: Path, pool: Executor, clock: Clock, *, shared: SharedNote | None, timeless: bool) -> None:
        self.metadata: ImageMetadata | None = None
        self.said = -math.inf
        self._note = note
        self._pool = pool
        self._clock = clock
        self._shared = shared
        self._timeless = timeless
        self._looked = -math.inf
        self._trouble: str | None = None

    @property
    def said_at(self) -> datetime:
        """Return the time of day of `said`, by the clock as it is set now."""
        return time_of(self._clock, self.said)

    async def read(self) -> None:
        """Read the file, and use what it says if that is later than what we know."""
        note, trouble = None, None
        try:
            note = Note.parse(await self._blocking(self._note.read_bytes))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            trouble = str(error)
        if note is not None and note.fetched_at is None:
            trouble = "it does not tell when upstream said so"
        if trouble is not None and trouble != self._trouble:  # once, however often it is read
            log.warning("%s is left alone: %s", self._note, trouble, extra=event("note.ignored"))
        self._trouble = trouble
        self._believe(note)

    async def read_shared(self) -> None:
        """Read the fleet's note, and use what it says if that is later than what we know."""
        if self._shared is not None:
            self._believe(await self._shared.read())

    async def read_shared_once_in(self, seconds: float) -> None:
        """Read the fleet's note unless this process has done so in the last `seconds`."""
        if self._clock.steady() - self._looked >= seconds:
            self._looked = self._clock.steady()
            await self.read_shared()

    async def write(self, metadata: ImageMetadata) -> None:
        """Keep what upstream says now."""
        if self.metadata is None or self.metadata.hash != metadata.hash:
            name = metadata.filename.encode("ascii", "replace").decode()
            log.info("current image is %s (%s)", metadata.hash, name, extra=event("image.current", image=metadata.hash))
        self.metadata, self.said = metadata, self._clock.steady()
        note = Note(metadata, time_of(self._clock, self._clock.steady()))
        try:
            await self._blocking(lambda: write_durably(self._note, note.to_bytes()))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._note, error, extra=event("note.unwritten"))
        if self._shared is not None:
            self._shared.write(note)

    def _believe(self, note: Note | None) -> None:
        """Use what a note says if that is later than what we know.

        A note from the future says nothing about its age, so it is never used in place of upstream's answer.
        """
        if note is None or note.fetched_at is None:
            return
        said = self._clock.moment(note.fetched_at.timestamp())
        if said is None and self._timeless:
            said = self._clock.steady()
        if said is not None and said > self.said:
            self.metadata, self.said = note.metadata, said

    async def _blocking(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)


def time_of(clock: Clock, moment: float) -> datetime:
    """Return the time of day of a moment, by the clock as it is set."""
    return datetime.fromtimestamp(clock.offset() + moment, UTC)
