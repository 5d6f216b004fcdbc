"""Reads and writes files on a medium (a stick, a DVD, a share) that others prepared and that is not trusted.

No link is followed and no pipe waited for: anything but a plain file is an error that says so. What is written is read
back. All of it blocks.
"""

import errno
import os
import stat
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from mirror.bundle.format import BadBundle
from mirror.common.files import sync_directory
from mirror.model.errors import MirrorError

PART = ".part"
"""Ending of a file that is not yet whole and read back."""

FLUSH = 64 << 20
"""Bytes after which what was written goes to the medium, so that the progress shown is its own, not the memory's."""

_STEP = 2 << 20


class FullMedium(MirrorError):
    """The medium has no room for what is to be written, or takes no file that large."""


def open_to_read(path: Path) -> int:
    """Open a plain file and return its descriptor. Raises BadBundle for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadBundle(f"{path} is a symbolic link: expected a plain file") from None
        raise BadBundle(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadBundle(f"{path} is no plain file")
    return fd


def size_of(path: Path) -> int:
    """Return the size of a plain file in bytes. Raises BadBundle for anything else."""
    fd = open_to_read(path)
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def read_small(path: Path, most: int) -> bytes:
    """Read a plain file of `most` bytes at most. Raises BadBundle."""
    fd = open_to_read(path)
    with os.fdopen(fd, "rb") as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise BadBundle(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise BadBundle(f"{path} is too large: {most} bytes are allowed")
    return data


def write_small(path: Path, data: bytes) -> None:
    """Write a small file and read it back, as a large one. Raises MirrorError or OSError."""
    file = MediumFile(path, len(data))
    try:
        file.put(0, memoryview(data))
        position = file.settle()
        while position < len(data):
            position = file.read_back(position)
        file.name()
    finally:
        file.close()


class MediumFile:
    """A file to be written at `path`, of which a part, or all, may be there from before.

    Bytes that are there and agree with those that are `put` are kept; the rest is written. The file gets its name when
    it is whole and was read back.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._part = path.with_name(path.name + PART)
        self._size = size
        if is_plain(path) and not self._part.exists():
            path.rename(self._part)
        try:
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR}:
                raise MirrorError(f"{self._part} is in the way: it is no plain file") from None
            raise
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise MirrorError(f"{self._part} is in the way: it is no plain file")
            self._check_limit()
        except BaseException:
            os.close(self._fd)
            raise
        self._there = found.st_size
        self._written_from = size
        self._written = sha256()
        self._flushed = 0
        os.fsync(self._fd)  # what an export that was killed has left may be in memory only
        _forget(self._fd)

    @property
    def kept(self) -> bool:
        """Return whether nothing had to be written."""
        return self._written_from == self._size

    def put(self, position: int, data: memoryview) -> None:
        """Make sure that `data`, which follows what was put before, is at `position`. Raises OSError."""
        stop = position + len(data)
        if self.kept:
            if stop <= self._there and os.pread(self._fd, len(data), position) == data:
                return
            os.ftruncate(self._fd, position)
            self._written_from = self._flushed = position
        self._written.update(data)
        while data:
            done = os.pwrite(self._fd, data, position)
            data, position = data[done:], position + done
        if stop - self._flushed >= FLUSH:
            self._flushed = stop
            os.fdatasync(self._fd)
            _forget(self._fd)

    def settle(self) -> int:
        """Make it durable, and return where to begin reading back. Raises OSError."""
        if self._there > self._size:
            os.ftruncate(self._fd, self._size)
        os.fsync(self._fd)
        _forget(self._fd)
        self._read = sha256()
        return self._written_from

    def read_back(self, position: int) -> int:
        """Read on from `position`, from the medium, and return how far that went. Raises OSError."""
        data = os.pread(self._fd, min(_STEP, self._size - position), position)
        if not data:
            raise _gave_back_other_bytes(self._path)
        self._read.update(data)
        return position + len(data)

    def name(self) -> None:
        """Give it its name. Raises MirrorError when what was read back is not what was written."""
        if self._read.digest() != self._written.digest():
            raise _gave_back_other_bytes(self._path)
        self._part.rename(self._path)
        with suppress(OSError):  # shares and FUSE may know no such thing; the bytes are on the medium
            sync_directory(self._path.parent)

    def close(self) -> None:
        """Let go of it as it is; an export that is begun again goes on with it."""
        os.close(self._fd)

    def _check_limit(self) -> None:
        try:
            os.lseek(self._fd, self._size, os.SEEK_SET)  # refused beyond the largest file of this file system
        except OSError as error:
            raise too_large_a_file(self._part.parent) from error


def is_plain(path: Path) -> bool:
    """Return whether a plain file is there."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def too_large_a_file(directory: Path) -> FullMedium:
    """Say that one file may not be that large, and what to do."""
    return FullMedium(
        f"the file system of {directory} takes no file that large (FAT32 takes 4 GiB less a byte): give --split 4GiB"
    )


def _gave_back_other_bytes(path: Path) -> MirrorError:
    return MirrorError(
        f"{path}: the medium does not give back what was written to it; export again, and if that says the same, take "
        "another medium"
    )


def _forget(fd: int) -> None:
    """Drop the file from the page cache, as far as it is on the medium, so that the next read comes from there."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
