"""How far images that are being indexed are, for all processes of a mirror: one indexes, the others tell clients."""

import struct
from dataclasses import dataclass

from mirror.common.shared_memory import SharedNotes

LASTING = 10.0
"""Seconds after which a note is about an indexing that has ended, or whose process has."""

IMAGES = 64
"""The most images that are being indexed at once, and noted."""

_NOTE = struct.Struct("=dd")


@dataclass(frozen=True, slots=True)
class Progress:
    """How much is done, from 0 to 1, and about how many seconds are left."""

    done: float
    seconds_left: float


def shared_progress(descriptor: int | None = None) -> SharedNotes:
    """Make the memory that the processes of a mirror share for this."""
    return SharedNotes(IMAGES, _NOTE.size, LASTING, descriptor)


class IndexProgress:
    """What is noted in `notes`, by the hash of the image."""

    def __init__(self, notes: SharedNotes) -> None:
        self._notes = notes

    def put(self, image_hash: str, progress: Progress) -> None:
        """Note how far it is; to be repeated before LASTING seconds have passed."""
        self._notes.put(image_hash, _NOTE.pack(progress.done, progress.seconds_left))

    def get(self, image_hash: str) -> Progress | None:
        """Return how far it is; None when it is not being indexed now."""
        note = self._notes.get(image_hash)
        return None if note is None else Progress(*_NOTE.unpack(note))

    def forget(self, image_hash: str) -> None:
        """Note that it is being indexed no more."""
        self._notes.remove(image_hash)
