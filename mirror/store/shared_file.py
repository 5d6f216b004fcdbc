"""One open file that any number of downloads send from; it may still be growing."""

import os
import time
import weakref

from mirror.store.read_locks import announce
from mirror.store.revoke import is_recalled

PROBE = 1 << 20
"""Distance in bytes at which `resident` looks: the kernel reads files ahead in pieces of this order."""

LOOK = 0.5
"""Seconds between two looks whether the file is still to be sent."""

READ_AHEAD = 8 << 20
SCRATCH = 128 << 10
"""Bytes read ahead in the background, and read at once into nothing to wait for them."""


class SharedFile:
    """A descriptor, closed when the last user lets go of it.

    While it is open all processes can see that the file is read. Who reads along in a journal hears the fill's verdict,
    and nothing before that: there it is not `recallable`.
    """

    def __init__(self, fd: int, *, recallable: bool = True) -> None:
        self.fd = fd
        self.recallable = recallable
        self._recalled = False
        self._looked_at = float("-inf")
        weakref.finalize(self, os.close, fd)
        announce(fd)

    def fileno(self) -> int:
        """The descriptor, for `os.sendfile` and what is built on it."""
        return self.fd

    def recalled(self, *, surely: bool = False) -> bool:
        """Whether its bytes must not be sent any more, as it was at most LOOK seconds ago, or `surely` now."""
        if not self.recallable:
            return False
        now = time.monotonic()
        if surely or now - self._looked_at >= LOOK:
            self._looked_at = now
            self._recalled = is_recalled(os.fstat(self.fd))
        return self._recalled

    def resident(self, start: int, stop: int) -> bool:
        """Whether [start, stop) seems to be in the page cache, so that sending it will not wait for the disk."""
        probe = [bytearray(1)]
        try:
            for offset in (*range(start, stop, PROBE), stop - 1):
                os.preadv(self.fd, probe, offset, os.RWF_NOWAIT)
        except OSError:  # not there, or a file system that cannot tell
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
