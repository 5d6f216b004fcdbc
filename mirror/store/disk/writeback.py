"""Has the kernel begin early to write a file to the disk, so that a later fsync has little left to do.

`sync_file_range` makes nothing durable, asks nothing of the disk's own cache and writes no journal of the file system,
as an fdatasync on the way does (sync_file_range(2)). Python does not have it, but its C library does.
"""

import ctypes
from collections.abc import Callable

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE: begin to write the pages that have changed, and do not wait for them."""


def _find() -> Callable[[int, int, int, int], int] | None:
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


_sync_file_range = _find()


def begin_writeback(fd: int, start: int, stop: int) -> None:
    """Begin to write the bytes [start, stop). Blocks while the disk takes no more; what fails shows at the fsync."""
    if _sync_file_range is not None:
        _sync_file_range(fd, start, stop - start, _WRITE)
