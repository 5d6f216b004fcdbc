"""Takes a file back from all clients that are being sent it, in every process.

The mark is on the file itself: whoever has it open sees it wherever its name has gone, and it holds where
the file cannot be moved: the sticky bit, which means nothing for a file on Linux. What is evicted bears none.
"""

import os
import stat
from pathlib import Path


def recall(path: Path) -> bool:
    """Mark the file; False when that cannot be done (it is another user's): then whoever reads it goes on. Blocks."""
    try:
        path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_ISVTX)
    except OSError:
        return False
    return True


def is_recalled(file: os.stat_result) -> bool:
    """Whether what the system says of a file shows the mark."""
    return bool(file.st_mode & stat.S_ISVTX)


def readmit(fd: int) -> None:
    """Take the mark away: it is to be hashed again, or was found right. Blocks; raises OSError."""
    mode = os.fstat(fd).st_mode
    if mode & stat.S_ISVTX:
        os.fchmod(fd, stat.S_IMODE(mode) & ~stat.S_ISVTX)
