"""One open file that any number of downloads send from; it may still be growing."""

import os
import time
import weakref

from mirror.store.read_locks import announce
from mirror.store.recall import is_recalled

PROBE = 1 << 20
"""Distance in bytes at which `resident` checks: the kernel reads files ahead in pieces of about this size."""

LOOK = 0.5
"""Seconds between two checks whether the file may still be sent."""

READ_AHEAD = 8 << 20
SCRATCH = 128 << 10
"""Bytes read ahead in the background, and read and discarded at once in order to wait for them."""


class SharedFile:
    """A descriptor, closed when the last user lets go of it.

    While it is open, all processes can see that the file is being read. A client that reads along in a journal gets the
    fill's verdict instead of a recall, so that file is not `recallable`.
    """

    def __init__(self, fd: int, *, recallable: bool = True) -> None:
        self.fd = fd
        self.recallable = recallable
        self._recalled = False
        self._looked_at = float("-inf")
        weakref.finalize(self, os.close, fd)
        announce(fd)

    def fileno(self) -> int:
        """Return the descriptor, for `os.sendfile` and what is built on it."""
        return self.fd

    def recalled(self, *, surely: bool = False) -> bool:
        """Return whether its bytes must not be sent any more, checked at most LOOK seconds ago; `surely`: now."""
        if not self.recallable:
            return False
        now = time.monotonic()
        if surely or now - self._looked_at >= LOOK:
            self._looked_at = now
            self._recalled = is_recalled(os.fstat(self.fd))
        return self._recalled

    def resident(self, start: int, stop: int) -> bool:
        """Return whether [start, stop) seems to be in the page cache, so that sending it will not wait for the disk."""
        probe = [bytearray(1)]
        try:
            for offset in (*range(start, stop, PROBE), stop - 1):
                os.preadv(self.fd, probe, offset, os.RWF_NOWAIT)
        except OSError:  # it is not there, or the file system cannot tell
            return False
        return True

    def load(self, start: int, stop: int) -> None:
        """Bring [start, stop) into the page cache and begin to read what follows. Blocks: for a worker thread."""
        os.posix_fadvise(self.fd, start, stop - start + READ_AHEAD, os.POSIX_FADV_WILLNEED)
        scratch = [bytearray(SCRATCH)]
        for offset in range(start, stop, SCRATCH):
            os.preadv(self.fd, scratch, offset)

    def read(self, start: int, stop: int) -> bytes:
        """Read the bytes [start, stop) or fewer, at least one. Blocks. Raises OSError when there are none."""
        if not (data := os.pread(self.fd, stop - start, start)):
            raise OSError(f"the file ends before byte {start}")
        return data
