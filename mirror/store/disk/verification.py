"""Hashes a stored image again, reading from the disk itself.

The page cache is bypassed, because its copy may be right when the disk is not. All of it blocks.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import weakref
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from mirror.store.disk.layout import Layout
from mirror.store.disk.quarantine import set_aside
from mirror.store.disk.verified_marker import MARKER, Identity, trust
from mirror.store.recall import readmit, recall

STEP = 4 << 20
"""Bytes digested at a time."""


class Verdict(StrEnum):
    """How a verification ended."""

    GOOD = "good"
    WRONG = "wrong bytes"
    UNREADABLE = "unreadable"
    SHORT = "not whole"
    CHANGED = "changed while it was read"
    GONE = "not there"


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome for one image in one `place`, disk or bucket.

    A `bad` image on the disk was set aside, unless it is merely not whole: then it may be continued. If setting it
    aside failed, `detail` says so.
    """

    image_hash: str
    verdict: Verdict
    detail: str
    place: str = "disk"

    @property
    def bad(self) -> bool:
        """Return whether the image is not what its name says."""
        return self.verdict in {Verdict.WRONG, Verdict.UNREADABLE, Verdict.SHORT}


class Verification:
    """One pass over the image of that hash; `position` of `size` bytes are digested."""

    def __init__(self, layout: Layout, image_hash: str) -> None:
        self.position = self.size = 0
        self._layout = layout
        self._hash = image_hash
        self._digest = hashlib.sha256()
        self._trouble: OSError | None = None
        self._fd: int | None = None
        self._identity: Identity | None = None
        with suppress(FileNotFoundError):
            self._fd = _open(layout.images / image_hash / "image")
            weakref.finalize(self, os.close, self._fd)  # not before a thread that may still be reading has ended
            self._identity = Identity.of(os.fstat(self._fd))
            self.size = self._identity.size
        metadata = layout.metadata(image_hash)
        self._expected = metadata.size if metadata else 0
        self._buffer = mmap.mmap(-1, STEP)  # aligned, as reads past the page cache need it

    def step(self) -> bool:
        """Digest one more part; return True while there is more."""
        if self._fd is None or self._trouble is not None or self.size < self._expected:
            return False
        try:
            count = self._read(self._fd)
        except OSError:
            try:
                count = self._read(self._fd)  # a disk may fail just once
            except OSError as error:
                self._trouble = error
                return False
        with memoryview(self._buffer) as view:
            self._digest.update(view[:count])
        self.position += count
        return count > 0 and self.position < self.size

    def conclude(self) -> Verified:
        """Trust the image, or set it aside."""
        found = None if (file := self._layout.file(self._hash)) is None else Identity.of(file)
        if self._identity is None or found is None:
            return Verified(self._hash, Verdict.GONE, "it is not stored any more")
        if found != self._identity:
            return Verified(self._hash, Verdict.CHANGED, "it changed while it was read")
        if self._trouble is not None:
            return self._bad(Verdict.UNREADABLE, f"it cannot be read: {self._trouble.strerror}")
        if self.size < self._expected:
            return Verified(self._hash, Verdict.SHORT, f"it has {self.size} bytes and should have {self._expected}")
        if self._digest.hexdigest() != self._hash:
            return self._bad(Verdict.WRONG, f"its sha256 is {self._digest.hexdigest()}")
        try:
            if self._fd is not None:
                readmit(self._fd)
            trust(self._layout.images / self._hash, self._identity)
        except OSError as error:  # the earlier note still holds
            return Verified(self._hash, Verdict.GOOD, f"its bytes are right, which cannot be noted: {error.strerror}")
        return Verified(self._hash, Verdict.GOOD, "its bytes are right")

    def _bad(self, verdict: Verdict, detail: str) -> Verified:
        directory = self._layout.images / self._hash
        kept_back = recall(directory / "image")
        with suppress(OSError):
            (directory / MARKER).unlink()  # if a person moves the file back by hand, it is verified again
            kept_back = True
        try:
            aside = set_aside(directory / "image", self._layout.quarantine, self._hash)
        except OSError as error:
            served = "is not served any more" if kept_back else "is still served: remove it by hand"
            return Verified(self._hash, verdict, f"{detail}; it cannot be set aside ({error.strerror}), and {served}")
        return Verified(self._hash, verdict, f"{detail}; it was set aside as {aside.parent.name}/{aside.name}")

    def _read(self, fd: int) -> int:
        try:
            return os.preadv(fd, [self._buffer], self.position)
        except OSError as error:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)  # the file system accepted O_DIRECT but cannot do it
        return os.preadv(fd, [self._buffer], self.position)


def _open(path: os.PathLike[str]) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NOREUSE)
    return fd
