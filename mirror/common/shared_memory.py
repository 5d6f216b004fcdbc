"""Short-lived notes, found by name, that the processes of a mirror leave for one another in shared memory.

All processes know what one of them has just learnt, and nothing of it reaches the disk. A name is kept as a keyed
digest. Times are those of CLOCK_MONOTONIC, which is the same in all processes and which nobody can set.
"""

import fcntl
import hashlib
import mmap
import os
import secrets
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_KEY = 32
_HEAD = struct.Struct("=d32sI")
"""The head of a slot: when it was written, the name's digest, how long the note is."""

_NEIGHBOURS = 8
"""Slots where a note of one name may be; when all are taken, the oldest goes."""


@contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Lock the other processes out of what `descriptor` opens. Within one process, the event loop keeps order."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)


class SharedNotes:
    """At most `slots` notes of up to `longest` bytes, each good for `lasting` seconds after it was written.

    `descriptor` is that of another process's notes, which are to be shared; without one they are new. It is closed when
    they are no longer used.
    """

    def __init__(
        self,
        slots: int,
        longest: int,
        lasting: float,
        descriptor: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots, self._longest, self._lasting, self._clock = slots, longest, lasting, clock
        self._step = _HEAD.size + longest
        size = _KEY + slots * self._step
        fresh = descriptor is None
        if descriptor is None:
            descriptor = os.memfd_create("pps-mirror-notes", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._memory = mmap.mmap(descriptor, size)
        if fresh:
            self._memory[:_KEY] = secrets.token_bytes(_KEY)

    def get(self, name: str) -> bytes | None:
        """Return the note of that name, from whichever process; None when there is none any more."""
        digest = self._digest(name)
        with locked(self.descriptor):
            for slot in self._slots_of(digest):
                when, whose, length = _HEAD.unpack_from(self._memory, slot)
                if whose == digest and self._holds(when):
                    start = slot + _HEAD.size
                    return self._memory[start : start + length]
        return None

    def put(self, name: str, note: bytes) -> None:
        """Leave a note, in place of an older one of that name. A note that is too long is not kept."""
        if len(note) > self._longest:
            return
        digest = self._digest(name)
        with locked(self.descriptor):
            slot = min(self._slots_of(digest), key=lambda slot: self._age_at(slot, digest))
            _HEAD.pack_into(self._memory, slot, self._clock(), digest, len(note))
            self._memory[slot + _HEAD.size : slot + _HEAD.size + len(note)] = note

    def remove(self, name: str) -> None:
        """Remove the note of that name."""
        digest = self._digest(name)
        with locked(self.descriptor):
            for slot in self._slots_of(digest):
                if _HEAD.unpack_from(self._memory, slot)[1] == digest:
                    _HEAD.pack_into(self._memory, slot, 0.0, bytes(len(digest)), 0)

    def _digest(self, name: str) -> bytes:
        return hashlib.blake2b(
            name.encode("utf-8", "surrogateescape"), key=self._memory[:_KEY], digest_size=32
        ).digest()

    def _slots_of(self, digest: bytes) -> Iterator[int]:
        first = int.from_bytes(digest[:8])
        for number in range(min(_NEIGHBOURS, self._slots)):
            yield _KEY + (first + number) % self._slots * self._step

    def _age_at(self, slot: int, digest: bytes) -> float:
        """Return the sort key of slots to write to: the one that has the note already, then the oldest."""
        when, whose, _ = _HEAD.unpack_from(self._memory, slot)
        return float("-inf") if whose == digest else float(when)

    def _holds(self, when: float) -> bool:
        return 0 <= self._clock() - when < self._lasting
