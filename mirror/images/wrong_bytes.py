"""Counts how often upstream sent wrong bytes for an image; after five times, it is asked only once a minute."""

import struct
import time
from collections.abc import Callable

from mirror.common.shared_memory import SharedNotes

TIMES = 5
WITHIN = 600.0
PAUSE = 60.0
"""Seconds between two requests once upstream has sent wrong bytes five times, each within ten minutes of the one
before; in between, clients are told so."""

IMAGES = 64
"""The most images that are remembered."""

_WHEN = struct.Struct("=d")


def shared_wrong_bytes(descriptor: int | None = None) -> SharedNotes:
    """Make the counts that the processes of a mirror share."""
    return SharedNotes(IMAGES, TIMES * _WHEN.size, WITHIN, descriptor)


class WrongBytes:
    """Counts wrong bytes, for all processes that share `notes`."""

    def __init__(self, notes: SharedNotes, clock: Callable[[], float] = time.monotonic) -> None:
        self._notes = notes
        self._clock = clock

    def count(self, image_hash: str) -> None:
        """Note that the bytes of this image were wrong once more."""
        times = (self._notes.get(image_hash) or b"") + _WHEN.pack(self._clock())
        self._notes.put(image_hash, times[-TIMES * _WHEN.size :])

    def forget(self, image_hash: str) -> None:
        """Note that the bytes of this image were right."""
        self._notes.remove(image_hash)

    def pause(self, image_hash: str) -> float:
        """Return for how many seconds upstream is not to be asked for that image; 0 or less when it may be."""
        times = self._notes.get(image_hash) or b""
        if len(times) < TIMES * _WHEN.size:
            return 0.0
        (last,) = _WHEN.unpack_from(times, len(times) - _WHEN.size)
        return PAUSE - (self._clock() - float(last))
