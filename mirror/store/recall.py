"""Recalls a file from all clients that are being sent it, in every process.

The mark is on the file itself, so a process that has it open sees the mark wherever the file has been moved, and it
works where the file cannot be moved. It is the sticky bit, which means nothing for a file on Linux. An evicted file is
not marked.
"""

import os
import stat
from pathlib import Path


def recall(path: Path) -> bool:
    """Mark the file; return False when that is impossible (another user owns it): then its readers go on. Blocks."""
    try:
        path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_ISVTX)
    except OSError:
        return False
    return True


def is_recalled(file: os.stat_result) -> bool:
    """Return whether the stat of a file shows the mark."""
    return bool(file.st_mode & stat.S_ISVTX)


def readmit(fd: int) -> None:
    """Take the mark away, since the file is to be hashed again, or was found right. Blocks; raises OSError."""
    mode = os.fstat(fd).st_mode
    if mode & stat.S_ISVTX:
        os.fchmod(fd, stat.S_IMODE(mode) & ~stat.S_ISVTX)
