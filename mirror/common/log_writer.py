"""Writes lines of the log in a thread of its own, so that a slow reader of the log delays nothing.

Lines wait in memory, within a bound. A line that has no room, or cannot be written, is counted and dropped. For callers
nothing here may block or fail: neither at a pipe that is not read, nor at a closed one, nor on a full disk. Several
lines are written at a time, because waking a thread and calling the kernel cost more than making a line.
"""

import itertools
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TextIO

ROOM = 1 << 20
"""Bytes of lines that may wait. The last quarter is for warnings and errors."""

GATHER_SECONDS = 0.1
"""Seconds for which a line that may wait does so, for others to be written with it."""

GATHER_BYTES = 64 << 10
"""Bytes of lines that do not wait for more."""

PIECE = select.PIPE_BUF
"""Bytes that are written at a time, save a longer line: the kernel keeps so much in one piece in a pipe that several
processes write to. In a file it keeps any write in one piece, and GATHER_BYTES are written at a time."""

END_SECONDS = 3.0
"""The most seconds that closing may take when lines wait and are not read."""


class LogWriter:
    """Writes to the descriptor of `stream`. A context manager: it writes inside, and the rest when that ends.

    `complain` is called, in the writing thread, with the number of lines that were lost, once there is room again.
    """

    def __init__(
        self,
        stream: TextIO,
        complain: Callable[[int], None],
        *,
        gather_seconds: float = GATHER_SECONDS,
        end_seconds: float = END_SECONDS,
    ) -> None:
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._piece = GATHER_BYTES if stat.S_ISREG(os.fstat(self._descriptor).st_mode) else PIECE
        self._complain = complain
        self._gather_seconds = gather_seconds
        self._end_seconds = end_seconds
        self._lines: list[bytes] = []
        self._waiting = 0  # bytes in them, and in those that the thread has taken and not begun to write
        self._hurry = False  # one of them is not to wait
        self._unsaid = 0
        self._torn = False  # the last line was written in part only
        # One that its thread may take again: what the garbage collector ends while we hold it may log something.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # taking the lock by it takes three times as long
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)  # it may hang when we end
        self._count_lost: Callable[[int], object] = lambda _lines: None

    def count_lost_with(self, count: Callable[[int], object]) -> None:
        """Have `count` called for every line that is lost, in whatever thread."""
        self._count_lost = count

    def write(self, line: str, *, important: bool = False, waits: bool = False) -> None:
        """Take a line to be written, or drop it if too much waits already. Returns at once.

        An `important` line has room when others have none. A line that `waits` is written a little later, together with
        the lines that come until then: requests have many.
        """
        encoded = f"{line}\n".encode(self._encoding, "backslashreplace")
        with self._lock:
            room = ROOM if important else ROOM * 3 // 4
            if kept := self._waiting + len(encoded) <= room:
                is_first = not self._lines
                self._lines.append(encoded)
                self._waiting += len(encoded)
                hurry = not waits or self._waiting >= GATHER_BYTES
                if is_first or (hurry and not self._hurry):
                    self._changed.notify()
                self._hurry |= hurry
            else:
                self._unsaid += 1
        if not kept:
            self._count_lost(1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(self._end_seconds)

    def _run(self) -> None:
        while self._gather():
            for lines in _pieces(self._take(), self._piece):
                self._write(lines)

    def _write(self, lines: Sequence[bytes]) -> None:
        """Write lines at once, and see to those that are lost."""
        with self._lock:
            self._waiting -= sum(map(len, lines))
        lost = self._put(lines)
        if lost < len(lines):
            self._admit()
        if lost:
            with self._lock:
                self._unsaid += lost
            self._count_lost(lost)

    def _gather(self) -> bool:
        """Wait for lines, and a while for more. Returns False when there are none and the writer ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ending)
            self._changed.wait_for(lambda: self._hurry or self._ending, self._gather_seconds)
            self._hurry = False
            return bool(self._lines)

    def _take(self) -> Sequence[bytes]:
        """Return the lines that wait."""
        with self._lock:
            lines, self._lines = self._lines, []
            return lines

    def _admit(self) -> None:
        """Report lost lines, but not for each line that finds room while little is read."""
        with self._lock:
            lost = self._unsaid if self._waiting <= ROOM // 2 else 0
            self._unsaid -= lost
        if lost:
            self._complain(lost)

    def _put(self, lines: Sequence[bytes]) -> int:
        """Write lines, however long that takes. Returns how many of them could not be written whole."""
        rest = b"".join(lines)
        begun = 0
        if self._torn:
            begun, rest = 1, b"\n" + rest
        written = 0
        try:
            while rest:
                try:
                    size = os.write(self._descriptor, rest)
                except BlockingIOError:  # another process that has it open made it non-blocking
                    select.select([], [self._descriptor], [])
                    continue
                written += size
                self._torn = not rest[:size].endswith(b"\n")
                rest = rest[size:]
        except OSError:
            return sum(end > written - begun for end in itertools.accumulate(map(len, lines)))
        return 0


def _pieces(lines: Sequence[bytes], most: int) -> Iterator[Sequence[bytes]]:
    """Yield lines in groups that are written at once: `most` bytes, or one longer line."""
    first, size = 0, 0
    for number, line in enumerate(lines):
        size += len(line)
        if size > most and number > first:
            yield lines[first:number]
            first, size = number, len(line)
    if lines:
        yield lines[first:]
