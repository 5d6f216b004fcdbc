"""Writes in whole, aligned blocks, from which the page cache sends best (see `mirror.store.base.BLOCK`)."""

import os
from collections.abc import Iterator, Sequence

from mirror.store.base import BLOCK

IOV_MAX = 1024
"""Pieces that the kernel takes in one call, at most."""


def blocks(pieces: Sequence[bytes | memoryview], position: int) -> Iterator[list[memoryview]]:
    """Divide what is appended at `position` so that each write ends at a boundary, or at the end."""
    block: list[memoryview] = []
    end = position
    for whole in pieces:
        piece = memoryview(whole)
        while piece:
            part = piece[: BLOCK - end % BLOCK]
            block.append(part)
            end += len(part)
            piece = piece[len(part) :]
            if end % BLOCK == 0 or len(block) == IOV_MAX:
                yield block
                block = []
    if block:
        yield block


def write_all(fd: int, block: Sequence[memoryview], position: int) -> None:
    """Write the pieces of a block at `position` of a file. Blocks; raises OSError."""
    written = os.pwritev(fd, block, position)
    offset = position
    for piece in block:
        if written < len(piece):  # a short write is rare: a signal, or a disk about to be full
            done = written
            while done < len(piece):
                done += os.pwrite(fd, piece[done:], offset + done)
        written = max(0, written - len(piece))
        offset += len(piece)
