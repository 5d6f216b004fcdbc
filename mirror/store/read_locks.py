"""Shows all processes which files are being read, by a shared lock that is held until the last descriptor is closed.

The lock blocks nothing and is independent of the lock that makes sure that only one process appends (`flock`); eviction
checks whether there is one. On a file system without locks nothing is known, but a file that is removed can still be
read by those that have it open.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length (0: to the end), process


def announce(fd: int) -> None:
    """Say that the file is being read, until `fd` is closed or `withdraw` is called."""
    _set(fd, fcntl.F_RDLCK)


def withdraw(fd: int) -> None:
    """Say that it is no longer being read."""
    _set(fd, fcntl.F_UNLCK)


def is_read(path: Path) -> bool:
    """Return whether any process of this host has said that this file is being read."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        finally:
            os.close(fd)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    return False


def _set(fd: int, kind: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
