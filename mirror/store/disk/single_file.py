"""Keeps the journal of a fill that ends as one file that a person chose, with no store around it.

While the image is received, the file is `<file>.part`, with a note of what it is in `<file>.part.json`: running the
same command again, after any interruption, resumes it.
"""

import os
from pathlib import Path
from typing import Self

from mirror.common.files import sync_directory
from mirror.model.errors import Unavailable
from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note
from mirror.store.disk.partial_file import PartialFile, lock


class SingleFile(PartialFile):
    """A `Partial` that becomes `target` when it is published, replacing any file of that name."""

    def __init__(self, target: Path, fd: int, metadata: ImageMetadata) -> None:
        # The directories of a store are never used: wrong bytes are removed, and no other process is followed.
        super().__init__(part_of(target), fd, metadata, ours=True, images=target.parent, quarantine=target.parent)
        self._target = target

    @classmethod
    def take_up(cls, target: Path, metadata: ImageMetadata) -> Self:
        """Begin, or resume what is there of that image; what is there of another image is thrown away. Blocks."""
        path = part_of(target)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            if not lock(fd) or not os.path.samestat(os.fstat(fd), path.stat()):
                raise Unavailable(f"another process is receiving {path}")
            note = path.with_name(f"{path.name}.json")
            if _noted(note) not in {None, metadata.hash}:
                note.unlink()
                os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        return cls(target, fd, metadata)

    def _name(self) -> None:
        self._path.rename(self._target)
        self._named = True
        sync_directory(self._target.parent)

    def _set_aside(self) -> None:
        self._remove()


def part_of(target: Path) -> Path:
    """Return where a file is while it is received."""
    return target.with_name(f"{target.name}.part")


def _noted(note: Path) -> str | None:
    """Return the hash of the image that the bytes beside `note` belong to; None if unknown: they may fit."""
    try:
        return Note.parse(note.read_bytes()).metadata.hash
    except (OSError, ValueError):
        return None
