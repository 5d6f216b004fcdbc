"""Images in a directory, laid out so that a person can read it, and make it, by hand.

    images/<hash>/image            the bytes
    images/<hash>/metadata.json    upstream's body
    images/<hash>/served           its time is when the image was last served
    images/<hash>/pinned           there when the image is pinned
    partial/<hash>, .json          a fill in progress or to be resumed (see `mirror.store.partial_file`)
    quarantine/<hash>-<time>       wrong bytes, for a person to look at; never served

Nothing gets a name below `images/` before it is whole, verified and fsynced. What a crash left is cleared away: files
that were being written, notes without their partial, and a partial that nobody has added to for a week; younger ones
wait to be resumed, whatever is current by now.
"""

import asyncio
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from mirror.errors import BadUpstream
from mirror.metadata import ImageMetadata, is_hash
from mirror.store.base import StoredImage, StoredInfo, StoreUnavailable
from mirror.store.durable import SUFFIX, sync_directory
from mirror.store.partial_file import PartialFile, lock, quarantined_at
from mirror.store.shared_file import SharedFile
from mirror.units import format_size

log = logging.getLogger(__name__)

QUARANTINE_SECONDS = 86_400
LEFTOVER_SECONDS = 3600
PARTIAL_SECONDS = 7 * 86_400

P = ParamSpec("P")
T = TypeVar("T")


class DiskStore:
    """A `BlobStore` in the directory `root`, leaving `min_free` bytes of its file system to others."""

    def __init__(self, root: Path, *, min_free: int, pool: Executor) -> None:
        self.root = root
        self._images = root / "images"
        self._partial = root / "partial"
        self._quarantine = root / "quarantine"
        self._min_free = min_free
        self._pool = pool
        self._in_use: weakref.WeakValueDictionary[tuple[object, ...], StoredImage] = weakref.WeakValueDictionary()

    async def prepare(self) -> None:
        """Make the directories and clear away what a crash left. Raises StoreUnavailable."""
        await self._run(self._prepare)

    async def probe(self) -> None:
        """See `BlobStore.probe`."""
        await self._run(self._probe)

    async def open(self, image_hash: str) -> StoredImage | None:
        """See `BlobStore.open`. All downloads of one image share one descriptor and one mapping."""
        identity = await self._run(self._identify, image_hash)
        if identity is None:
            return None
        if (image := self._in_use.get(identity)) is None:
            opened = await self._run(self._open, image_hash)
            if opened is None:
                return None
            image = self._in_use.setdefault(identity, opened)
        return image

    async def begin(self, metadata: ImageMetadata) -> PartialFile | StoredImage:
        """See `BlobStore.begin`."""
        return await self._run(self._begin, metadata)

    async def make_room(self, wanted: int) -> bool:
        """See `BlobStore.make_room`."""
        return False

    async def list(self) -> Sequence[StoredInfo]:
        """See `BlobStore.list`."""
        return await self._run(self._list)

    async def served(self, image_hash: str) -> None:
        """See `BlobStore.served`."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._touch, image_hash)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking code in the pool; the store's troubles come out as StoreUnavailable, in words."""

        def call() -> T:
            try:
                return function(*args, **kwargs)
            except OSError as error:
                log.debug("the store at %s fails: %s", self.root, error)
                raise StoreUnavailable(f"the mirror's store fails: {error.strerror or 'input/output error'}") from error

        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    # What follows blocks, and runs in the pool.

    def _make_directories(self) -> None:
        rooms = (self._images, self._partial, self._quarantine)
        if not all(directory.exists() for directory in rooms):
            for directory in rooms:
                directory.mkdir(parents=True, exist_ok=True)
            sync_directory(self.root)

    def _prepare(self) -> None:
        self._make_directories()
        for leftover in (
            *self.root.glob(f"*{SUFFIX}"),
            *self._partial.glob(f"*{SUFFIX}"),
            *self._images.glob(f"*/*{SUFFIX}"),
        ):
            if leftover.stat().st_mtime < time.time() - LEFTOVER_SECONDS:  # else another process may be writing it
                leftover.unlink(missing_ok=True)
        self._clear_partials()
        for wrong in self._quarantine.iterdir():
            if quarantined_at(wrong) < time.time() - QUARANTINE_SECONDS:
                shutil.rmtree(wrong) if wrong.is_dir() else wrong.unlink(missing_ok=True)

    def _probe(self) -> None:
        self._make_directories()  # the disk may have been mounted anew
        with tempfile.TemporaryFile(dir=self._images) as file:
            file.write(b"pps-mirror")
            file.flush()
            os.fsync(file.fileno())

    def _clear_partials(self) -> None:
        """Remove partials that nobody resumes any more, and notes that are left of one."""
        for path in sorted(self._partial.iterdir()):  # a partial before its note
            try:
                if is_hash(path.name) and _older(path.stat(), PARTIAL_SECONDS):
                    self._clear_partial(path)
                elif is_hash(path.stem) and path.suffix == ".json" and not path.with_suffix("").exists():
                    path.unlink()  # if it is being written at this very moment: a fill resumes without it, too
            except FileNotFoundError:  # another process was first
                continue
            except OSError as error:
                log.warning("%s cannot be cleared away: %s", path, error)

    def _clear_partial(self, path: Path) -> None:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            free = lock(file.fileno())  # else another process is adding to it
            if free and os.path.samestat(path.stat(), stat) and _older(stat, PARTIAL_SECONDS):
                path.unlink()
                log.info("%s is removed: nobody has added to it for a week", path)

    def _identify(self, image_hash: str) -> tuple[object, ...] | None:
        if not is_hash(image_hash):
            return None
        try:
            stat = (self._images / image_hash / "image").stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return image_hash, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _open(self, image_hash: str) -> StoredImage | None:
        directory = self._images / image_hash
        metadata = self._metadata(directory)
        if metadata is None:
            return None
        try:
            file = SharedFile(os.open(directory / "image", os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return None
        size = os.fstat(file.fd).st_size
        if size != metadata.size:
            log.warning("%s is %d bytes and should be %d: it will be fetched anew", directory, size, metadata.size)
            return None
        return StoredImage(metadata, file)

    def _metadata(self, directory: Path) -> ImageMetadata | None:
        try:
            metadata = ImageMetadata.parse((directory / "metadata.json").read_bytes())
        except FileNotFoundError:
            return None
        except BadUpstream as error:
            log.warning("%s is left alone: %s", directory, error)
            return None
        if metadata.hash != directory.name:
            log.warning("%s is left alone: its metadata names %s", directory, metadata.hash)
            return None
        return metadata

    def _begin(self, metadata: ImageMetadata) -> PartialFile | StoredImage:
        self._make_directories()
        path = self._partial / metadata.hash
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                ours = lock(fd)
                # Whoever held the lock may have published or removed the file since we opened it.
                if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                    if ours and (image := self._open(metadata.hash)) is not None:
                        path.unlink()
                        os.close(fd)
                        return image
                    if ours:
                        self._reserve(metadata.size - os.fstat(fd).st_size)
                    return PartialFile(path, fd, metadata, ours=ours, images=self._images, quarantine=self._quarantine)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _reserve(self, wanted: int) -> None:
        stat = os.statvfs(self.root)
        free = stat.f_bavail * stat.f_frsize
        if free - wanted < self._min_free:
            raise StoreUnavailable(
                f"the mirror's store has {format_size(free)} free; this image needs {format_size(max(wanted, 0))} more "
                f"and store.min_free keeps {format_size(self._min_free)}: free some space"
            )

    def _touch(self, image_hash: str) -> None:
        try:
            (self._images / image_hash / "served").touch()
        except OSError as error:
            log.debug("cannot note that %s was served: %s", image_hash, error)

    def _list(self) -> Sequence[StoredInfo]:
        found = []
        for directory in self._images.iterdir():
            if self._identify(directory.name) is None or (metadata := self._metadata(directory)) is None:
                continue
            served = directory / "served"
            found.append(
                StoredInfo(
                    metadata,
                    stored_at=_modified(directory / "metadata.json"),
                    last_served_at=_modified(served) if served.exists() else None,
                    pinned=(directory / "pinned").exists(),
                )
            )
        return sorted(found, key=lambda info: info.metadata.created, reverse=True)


def _older(stat: os.stat_result, seconds: float) -> bool:
    return stat.st_mtime < time.time() - seconds


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
