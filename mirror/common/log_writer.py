"""Writes lines of the log in a thread of its own, so that a slow reader of the log keeps nobody waiting.

Lines wait in memory, within a bound. A line that has no room, or cannot be written, is counted and dropped. For callers
nothing here may block or fail: neither at a pipe that nobody reads, nor at a closed one, nor on a full disk.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

ROOM = 1 << 20
"""Bytes of lines that may wait. The last quarter is for warnings and errors."""

END_SECONDS = 3.0
"""Seconds that the end may take when lines wait and nobody reads them."""


class LogWriter:
    """Writes to the descriptor of `stream`. A context manager: it writes inside, and the rest when that ends.

    `complain` is called, in the writing thread, with the number of lines that were lost, once there is room again.
    """

    def __init__(self, stream: TextIO, complain: Callable[[int], None], *, end_seconds: float = END_SECONDS) -> None:
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._complain = complain
        self._end_seconds = end_seconds
        self._lines: deque[bytes] = deque()
        self._waiting = 0  # bytes in them
        self._unsaid = 0
        self._torn = False  # the last line was written in part only
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)  # it may hang when we end
        self._count_lost: Callable[[int], object] = lambda _lines: None

    def count_lost_with(self, count: Callable[[int], object]) -> None:
        """Have `count` called for every line that is lost, in whatever thread."""
        self._count_lost = count

    def write(self, line: str, *, important: bool = False) -> None:
        """Take a line to be written, or drop it if too much waits already. Returns at once."""
        encoded = f"{line}\n".encode(self._encoding, "backslashreplace")
        with self._changed:
            room = ROOM if important else ROOM * 3 // 4
            if kept := self._waiting + len(encoded) <= room:
                self._lines.append(encoded)
                self._waiting += len(encoded)
                self._changed.notify()
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
        while (line := self._next()) is not None:
            if self._put(line):
                self._admit()
            else:
                with self._changed:
                    self._unsaid += 1
                self._count_lost(1)

    def _next(self) -> bytes | None:
        """Return the next line; None when there is none and the writer ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ending)
            if not self._lines:
                return None
            line = self._lines.popleft()
            self._waiting -= len(line)
            return line

    def _admit(self) -> None:
        """Report lost lines, but not for each line that finds room while little is read."""
        with self._changed:
            lost = self._unsaid if self._waiting <= ROOM // 2 else 0
            self._unsaid -= lost
        if lost:
            self._complain(lost)

    def _put(self, line: bytes) -> bool:
        """Write a line, however long that takes. Returns whether that was possible."""
        rest = b"\n" + line if self._torn else line
        try:
            while rest:
                try:
                    written = os.write(self._descriptor, rest)
                except BlockingIOError:  # somebody else who has it open made it so
                    select.select([], [self._descriptor], [])
                    continue
                rest = rest[written:]
                self._torn = bool(rest)
        except OSError:
            return False
        return True
