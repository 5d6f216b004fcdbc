"""Writes what is appended to a journal, in batches, and has the kernel bring it to the disk early."""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence

IOV_MAX = 1024
"""The most pieces that the kernel takes in one call."""

BATCH = 1 << 20
"""Bytes that are written at a time, digested while they are still in the processor's cache, and then shown to readers.
Not more: a write that exactly fills a huge page makes the kernel look for one, which took ten times as long where free
memory was fragmented."""

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE: begin to write the pages that have changed, and do not wait for them."""


def batches(pieces: Sequence[bytes | memoryview]) -> Iterator[list[memoryview]]:
    """Divide what is appended into batches, at the boundaries of pieces."""
    batch: list[memoryview] = []
    size = 0
    for piece in pieces:
        batch.append(memoryview(piece))
        size += len(piece)
        if size >= BATCH or len(batch) == IOV_MAX:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_all(fd: int, batch: Sequence[memoryview], position: int) -> None:
    """Write the pieces of a batch at `position` of a file. Blocks; raises OSError."""
    written = os.pwritev(fd, batch, position)
    offset = position
    for piece in batch:
        if written < len(piece):  # a short write is rare: a signal, or a disk about to be full
            done = written
            while done < len(piece):
                done += os.pwrite(fd, piece[done:], offset + done)
        written = max(0, written - len(piece))
        offset += len(piece)


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


_sync_file_range = _find_sync_file_range()


def begin_writeback(fd: int, start: int, stop: int) -> None:
    """Have the kernel begin to write the bytes [start, stop) to the disk, so that a later fsync has little left to do.

    Blocks while the disk takes no more; what fails shows at the fsync. `sync_file_range` makes nothing durable, asks
    nothing of the disk's own cache and writes no journal of the file system, as an fdatasync on the way does
    (sync_file_range(2)). Python does not have it, but its C library does.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, start, stop - start, _WRITE)
