"""The journal of a fill that ends as one file of a person's choice, with no store around it.

While it is received it is `<file>.part`, with a note of what it is in `<file>.part.json`: whoever runs the same command
again, after whatever happened, goes on with it.
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
    """A `Partial` that becomes `target` when it is published, in place of what had that name."""

    def __init__(self, target: Path, fd: int, metadata: ImageMetadata) -> None:
        # The rooms of a store are never entered: what is wrong is removed, and nobody is followed.
        super().__init__(part_of(target), fd, metadata, ours=True, images=target.parent, quarantine=target.parent)
        self._target = target

    @classmethod
    def take_up(cls, target: Path, metadata: ImageMetadata) -> Self:
        """Begin, or go on with what is there of that image; of another image nothing is kept. Blocks.

        Raises OSError, and Unavailable when another process receives into the same file.
        """
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
    """Where a file is while it is received."""
    return target.with_name(f"{target.name}.part")


def _noted(note: Path) -> str | None:
    """The hash of the image that the bytes beside `note` belong to; None when nobody can tell, so that they may do."""
    try:
        return Note.parse(note.read_bytes()).metadata.hash
    except (OSError, ValueError):
        return None
