"""Writes what is appended to a journal, in batches."""

import os
from collections.abc import Iterator, Sequence

IOV_MAX = 1024
"""The most pieces that the kernel takes in one call."""


BATCH = 1 << 20
"""Bytes that are written at a time, digested while they are still in the processor's cache, and then shown to readers.
Not more: a write that exactly fills a huge page makes the kernel look for one, which took ten times as long where free
memory was fragmented."""


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
