"""Keeps the journal of a fill as a file, and publishes it durably.

The file's length is the number of bytes received so far, and a lock on it makes sure that only one process appends. A
process that does not get the lock follows: it reads along as the file grows, and takes over when the lock is free.

Beside it, `<hash>.json` keeps the metadata and upstream's validator, so that a process that resumes can ask for the
rest. When a verified image could not get its name, the note also says which file was verified: then only the naming is
tried again.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mirror.common.files import sync_directory, write_durably
from mirror.common.log import event
from mirror.model.metadata import ImageMetadata
from mirror.store.base import Corrupt, Lost, Reader, Unnamed
from mirror.store.digest import check
from mirror.store.disk.batched_writes import batches, begin_writeback, write_all
from mirror.store.disk.partial_note import PartialNote
from mirror.store.disk.quarantine import set_aside
from mirror.store.disk.verified_marker import MARKER, Identity, trust
from mirror.store.read_locks import withdraw
from mirror.store.recall import readmit
from mirror.store.shared_file import SharedFile

log = logging.getLogger(__name__)

FLUSH = 8 << 20
"""Bytes after which the kernel is told to begin to write them to the disk, so that the fsync before publishing has
little left to do."""

FOLLOW = 0.05
"""Seconds between two checks of a file that another process appends to."""

_RECOVERY_STEP = 64 << 20
_DIGEST_STEP = 2 << 20

T = TypeVar("T")


class PartialFile:
    """A `Partial` at `path`, open as `fd`, which we have locked if it is `ours`.

    All its work runs in one thread of its own.
    """

    def __init__(
        self, path: Path, fd: int, metadata: ImageMetadata, *, ours: bool, images: Path, quarantine: Path
    ) -> None:
        self.file: SharedFile = SharedFile(fd, recallable=False)
        self.position = 0 if ours else os.fstat(fd).st_size
        self.ours = ours
        self.published = False
        self._path = path
        self._note = PartialNote(path.with_name(path.name + ".json"), metadata)
        self._metadata = metadata
        self._images = images
        self._quarantine = quarantine
        self._digest = hashlib.sha256()
        self._appender = ThreadPoolExecutor(1, thread_name_prefix="append")
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushing: Future[None] | None = None
        self._flushed = 0
        self.validator: str | None = None
        self._sealed = False
        self._named = False
        self._lossy = False
        if ours:
            self._take_up()

    def reader(self, offset: int) -> contextlib.AbstractAsyncContextManager[Reader]:
        """See `Partial.reader`: this journal always has a file, so it is never asked for one."""
        raise AssertionError("readers have the file")

    async def recover(self) -> bool:
        """See `Partial.recover`."""
        if self.ours:
            return await self._run(self._recover)
        await asyncio.sleep(FOLLOW)
        return await self._run(self._follow)

    async def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """See `Partial.append`."""
        await self._run(self._append, pieces)

    def digest(self) -> "hashlib._Hash":
        """See `Partial.digest`."""
        return self._digest.copy()

    async def remember(self, validator: str | None) -> None:
        """See `Partial.remember`.

        If the note cannot be written, the fill goes on without `If-Range`: the hash decides.
        """
        self.validator = validator
        try:
            await self._run(self._note.write, validator)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._note, error, extra=event("note.unwritten"))

    async def publish(self) -> None:
        """See `Partial.publish`."""
        await self._run(self._publish)

    async def quarantine(self) -> None:
        """See `Partial.quarantine`. Only the newest quarantined file of an image is kept."""
        await self._run(self._set_aside)

    async def discard(self) -> None:
        """See `Partial.discard`."""
        await self._run(self._remove)

    async def close(self) -> None:
        """See `Partial.close`. The lock is released here or with the last reader's descriptor, whichever comes first.

        The file is closed when its last reader lets go of it, even if something else (a traceback, say) still refers to
        us.
        """
        await self._run(self._unlock)
        del self.file
        self._appender.shutdown(wait=False)
        self._flusher.shutdown(wait=False)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        # Shielded: a cancelled fill must not leave the thread appending to a journal that the next one has taken over.
        future = asyncio.get_running_loop().run_in_executor(self._appender, function, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError, Corrupt):
                await future
            raise

    # Everything below blocks, and runs in the one thread.

    def _take_up(self) -> None:
        if os.fstat(self.file.fd).st_size > self._metadata.size:  # we did not write this much
            os.ftruncate(self.file.fd, 0)
        readmit(self.file.fd)
        self.validator = self._note.validator()
        if self._note.seals(self._identity()):
            self._sealed, self.position = True, self._metadata.size
        if not self._note.exists():  # a process that looks for room must know how much we still need
            self._note.write(self.validator)

    def _follow(self) -> bool:
        free = lock(self.file.fd)
        file = os.fstat(self.file.fd)
        if names(self._path, file) and file.st_size >= self.position:
            self.position = file.st_size
            if free:
                self.ours, self.position = True, 0  # ours to digest
                self._take_up()
            return True
        if free:
            self._unlock()
        if names(self._images / self._metadata.hash / "image", file):
            self.published, self.position = True, self._metadata.size
            self.file.recallable = True
            return False
        raise Lost("the process that received this image has put it away")

    def _recover(self) -> bool:
        length = os.fstat(self.file.fd).st_size
        stop = min(length, self.position + _RECOVERY_STEP)
        buffer = memoryview(bytearray(min(_DIGEST_STEP, stop - self.position)))
        while self.position < stop:
            count = os.preadv(self.file.fd, [buffer[: stop - self.position]], self.position)
            if not count:
                raise OSError(errno.EIO, "a partial file became shorter while it was read")
            self._digest.update(buffer[:count])
            self.position += count
        return self.position < length

    def _append(self, pieces: Sequence[bytes | memoryview]) -> None:
        try:
            for batch in batches(pieces):
                write_all(self.file.fd, batch, self.position)
                for piece in batch:
                    self._digest.update(piece)
                self.position += sum(map(len, batch))
        except OSError:
            # nothing may follow a torn write: cut the file off where the digest ends
            with contextlib.suppress(OSError):
                os.ftruncate(self.file.fd, self.position)
            raise
        if self.position - self._flushed >= FLUSH and (self._flushing is None or self._flushing.done()):
            begun, self._flushed = self._flushed, self.position // FLUSH * FLUSH
            self._flushing = self._flusher.submit(begin_writeback, self.file.fd, begun, self._flushed)

    def _publish(self) -> None:
        if not self._sealed:
            self._seal()
        self.file.recallable = True
        try:
            self._name()
            self._note.remove()
            sync_directory(self._path.parent)
        except OSError as error:
            if not self._named:
                self._note.seal(self.validator, self._identity())
                raise Unnamed(error.errno, error.strerror) from error
            log.warning(
                "%s is stored, but a power cut may take its name away again: %s",
                self._metadata.hash,
                error,
                extra=event("image.not_durable", image=self._metadata.hash),
            )

    def _seal(self) -> None:
        """Make sure that the bytes are right and durable. Raises Corrupt."""
        check(self._metadata, self.position, self._digest)
        # no other process wrote to it or cut it in the meantime
        check(self._metadata, os.fstat(self.file.fd).st_size, self._digest)
        try:
            os.fsync(self.file.fd)
        except OSError:
            self._lossy = True
            raise
        self._sealed = True

    def _name(self) -> None:
        """Give the image its name, durably; if that fails, leave nothing that could be taken for a stored image."""
        directory = self._images / self._metadata.hash
        described_before = (directory / "metadata.json").exists()
        try:
            directory.mkdir(exist_ok=True)
            # before the image is moved there: otherwise a power cut could lose the directory and the image with it
            sync_directory(self._images)
            write_durably(directory / "metadata.json", self._metadata.raw)
            trust(directory, self._identity())  # the file's identity is the same before and after it gets its name
            self._path.rename(directory / "image")
        except OSError:
            if not described_before:
                with contextlib.suppress(OSError):
                    for name in ("metadata.json", MARKER):
                        (directory / name).unlink(missing_ok=True)
                    directory.rmdir()
            raise
        self._named = True
        sync_directory(directory)

    def _set_aside(self) -> None:
        try:
            set_aside(self._path, self._quarantine, self._metadata.hash)
            self._note.remove()
        except OSError as error:
            log.warning(
                "what was received of %s cannot be set aside, and is removed: %s",
                self._metadata.hash,
                error,
                extra=event("partial.stuck", image=self._metadata.hash),
            )
            self._remove()

    def _remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
            self._note.remove()
        except OSError:  # a file that cannot be removed can be emptied: taken up again, it would be just as wrong
            os.ftruncate(self.file.fd, 0)
            raise

    def _unlock(self) -> None:
        if self._lossy:  # the page cache would return what the disk has lost, and it would be hashed and found right
            with contextlib.suppress(OSError):
                self._remove()
        fcntl.flock(self.file.fd, fcntl.LOCK_UN)
        if not (self._named or self._sealed or self.published):
            withdraw(self.file.fd)

    def _identity(self) -> Identity:
        return Identity.of(os.fstat(self.file.fd))


def lock(fd: int) -> bool:
    """Return whether we have the lock on a partial now; if not, another process appends to it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def names(path: Path, file: os.stat_result) -> bool:
    """Return whether `path` names that very file."""
    try:
        return os.path.samestat(path.stat(), file)
    except FileNotFoundError:
        return False
