"""What one hook has still to be told: a file with a line of JSON for each event, in order.

An event is in the queue once its line is on the disk. When it is done, the first byte of its line is overwritten; when
all are, the file is emptied. All processes of a store may put events in; one at a time takes them out
(`mirror.admin.hooks.delivery`). So no crash loses an event that is queued, and one that was delivered just before a
crash may be delivered once more.

When the disk takes nothing, events wait in the memory of the process that has them.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mirror.common.files import SUFFIX, locked_directory, sync_directory, write_durably
from mirror.common.log import event

MOST_BYTES = 1 << 20
"""How large the file may become: room for some 1500 events. Beyond that, the oldest are given up."""

MOST_IN_MEMORY = 1000
"""How many events may wait in memory. Beyond that, the oldest are given up."""

log = logging.getLogger(__name__)

_DONE = b"#"
_CUT = b"#\n"
"""Ends a line that was cut, so that it does not look whole when it was cut just behind a brace."""


class Queue:
    """The queue in `file`. An event is the JSON object that its receiver gets, on one line. Its methods block."""

    def __init__(self, file: Path, most: int = MOST_BYTES) -> None:
        self.file = file
        self._most = most
        self._memory: deque[bytes] = deque(maxlen=MOST_IN_MEMORY)
        self._unmarked: set[bytes] = set()

    def put(self, events: Sequence[bytes]) -> int:
        """Queue events, and return how many older ones had to be given up for them."""
        new = [each + b"\n" for each in events]
        try:
            with self._opened(os.O_CREAT) as fd:
                size = os.fstat(fd).st_size
                if size + sum(map(len, new)) <= self._most:
                    self._append(fd, size, b"".join(new))
                    return 0
                kept = [*filter(_waits, _lines(fd)), *new]
                many = len(kept)
                while sum(map(len, kept)) > self._most // 2:
                    del kept[0 : 1 + len(kept) // 10]
                write_durably(self.file, b"".join(kept))
                return many - len(kept)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.file, error.strerror, extra=event("hook.unqueued"))
            return self.keep(events)

    def keep(self, events: Sequence[bytes]) -> int:
        """Queue events in memory, and return how many older ones had to be given up for them."""
        given_up = max(0, len(self._memory) + len(events) - MOST_IN_MEMORY)
        self._memory.extend(events)
        return given_up

    def let_go(self) -> Sequence[bytes]:
        """Take all events out of the memory: another process keeps them from now on."""
        return [self._memory.popleft() for _ in range(len(self._memory))]

    def look(self) -> tuple[bytes | None, int]:
        """Return the event whose turn it is, which stays queued, and how many wait. Raises OSError."""
        waiting = [*self._waiting(), *self._memory]
        return (waiting[0] if waiting else None), len(waiting)

    def remove(self, done: bytes) -> None:
        """Take an event out: it was delivered or given up. If a power cut undoes that, it is delivered once more."""
        if done in self._memory:
            self._memory.remove(done)
            return
        try:
            self._mark(done)
        except OSError as error:  # it must not be delivered again and again
            log.warning("%s cannot be written: %s", self.file, error.strerror, extra=event("hook.unqueued"))
            self._unmarked.add(done)

    def _waiting(self) -> Sequence[bytes]:
        try:
            with self._opened() as fd:
                lines = [line[:-1] for line in _lines(fd) if _waits(line)]
        except FileNotFoundError:
            return []
        return [line for line in lines if line not in self._unmarked]

    def _mark(self, done: bytes) -> None:
        with self._opened() as fd:
            offset, left = 0, False
            for line in _lines(fd):
                if line == done + b"\n":
                    os.pwrite(fd, _DONE, offset)
                elif _waits(line):
                    left = True
                offset += len(line)
            if not left:
                os.ftruncate(fd, 0)

    def _append(self, fd: int, size: int, data: bytes) -> None:
        """Append lines durably, or leave the file as it was. Raises OSError."""
        if size and os.pread(fd, 1, size - 1) != b"\n":  # a power cut, or a crash in a write, has cut the last line
            data = _CUT + data
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], size + written)
            os.fdatasync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
        if not size:  # it may be new, and so may the directory
            sync_directory(self.file.parent)
            sync_directory(self.file.parent.parent)

    @contextmanager
    def _opened(self, flags: int = 0) -> Iterator[int]:
        """Open the file under the lock that all processes take. Raises OSError."""
        putting = bool(flags & os.O_CREAT)
        if putting:
            self.file.parent.mkdir(exist_ok=True)
        with locked_directory(self.file.parent):
            if putting:
                for leftover in self.file.parent.glob(f"{self.file.name}.*{SUFFIX}"):  # of a crash: we have the lock
                    leftover.unlink()
            fd = os.open(self.file, os.O_RDWR | os.O_CLOEXEC | flags, 0o640)
            try:
                yield fd
            finally:
                os.close(fd)


def _waits(line: bytes) -> bool:
    """Return whether a line is an event that is not done, and whole: a crash may have cut it."""
    return line.startswith(b"{") and line.endswith(b"}\n")


def _lines(fd: int) -> Sequence[bytes]:
    """Return all lines of a file with their ends."""
    return os.pread(fd, os.fstat(fd).st_size, 0).splitlines(keepends=True)
