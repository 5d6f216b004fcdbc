"""Shows all processes which files are read: by a shared lock on their bytes, held until the last descriptor is closed.

It hinders nobody and is independent of the lock that makes one appender of many (`flock`); eviction looks whether there
is one. Where a file system knows no locks nothing is known, and a file that is taken away stays readable all the same.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length (0: to the end), process


def announce(fd: int) -> None:
    """Say that the file is read, until `fd` is closed or `withdraw` is called."""
    _set(fd, fcntl.F_RDLCK)


def withdraw(fd: int) -> None:
    """Say that it is not read any more."""
    _set(fd, fcntl.F_UNLCK)


def is_read(path: Path) -> bool:
    """Whether anybody, in any process of this host, has said that this file is read."""
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
