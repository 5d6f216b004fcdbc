"""Keeps images in a directory whose layout a person can read, and create, by hand.

    images/<hash>/image            the bytes
    images/<hash>/metadata.json    upstream's body
    images/<hash>/verified         which file had its bytes verified last (see `mirror.store.disk.verified_marker`)
    images/<hash>/served           its time is when the image was last served
    images/<hash>/pinned           there when the image is pinned
    partial/<hash>, .json          a fill in progress or to be resumed (see `mirror.store.disk.partial_file`)
    quarantine/<hash>-<time>       wrong bytes, for a person to look at; never served

Nothing gets a name below `images/` before it is whole, verified and fsynced. A file there that is not the one that was
verified counts as a partial: the next fill of its hash takes it up, digests it, and goes on. What a crash left is
cleared away (see `mirror.store.disk.removal`); partials are kept for a week, to be resumed.
"""

import asyncio
import logging
import os
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import ParamSpec, TypeVar

from mirror.common.files import sync_directory
from mirror.common.log import event
from mirror.model.metadata import ImageMetadata, is_hash
from mirror.model.source import Source
from mirror.store.base import Remote, Retention, StoredImage, StoredInfo, StoreUnavailable, Transfer
from mirror.store.disk.adoption import adopt
from mirror.store.disk.layout import Layout
from mirror.store.disk.partial_file import PartialFile, lock, names
from mirror.store.disk.removal import carry_out, leftovers, remove_image, remove_partial
from mirror.store.disk.space import Collected, Space, Use
from mirror.store.disk.verification import Verification, Verified
from mirror.store.disk.verified_marker import Identity, verified_at
from mirror.store.recall import is_recalled, recall
from mirror.store.shared_file import SharedFile

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class DiskStore:
    """A `BlobStore` in the directory `root`; when it needs room, it evicts the images that `retention` names.

    It takes `max_size` bytes at most, and leaves `min_free` bytes of its file system to others. `evicted` is called for
    each image that is evicted, in any thread.
    """

    def __init__(
        self,
        root: Path,
        *,
        min_free: int,
        pool: Executor,
        max_size: int | None = None,
        retention: Retention | None = None,
        evicted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.root = root
        self._layout = Layout(root)
        self._images = self._layout.images
        self._partial = self._layout.partial
        self._quarantine = self._layout.quarantine
        retention = retention or _keep_all
        self._space = Space(self._layout, max_size=max_size, min_free=min_free, retention=retention, evicted=evicted)
        self._pool = pool
        self._in_use: weakref.WeakValueDictionary[tuple[object, ...], StoredImage] = weakref.WeakValueDictionary()

    async def prepare(self) -> None:
        """Make the directories and clear away what a crash left. Raises StoreUnavailable."""
        await self._run(self._prepare)

    def take_up(self, *, max_size: int | None, min_free: int, retention: Retention) -> None:
        """Use these bounds from now on."""
        self._space.take_up(max_size=max_size, min_free=min_free, retention=retention)

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

    async def has(self, image_hash: str) -> bool:
        """See `BlobStore.has`."""
        return await self.open(image_hash) is not None

    async def begin(self, metadata: ImageMetadata, upstream: Source) -> Transfer | StoredImage:
        """See `BlobStore.begin`: bytes always come from upstream."""
        begun = await self.journal(metadata)
        return begun if isinstance(begun, StoredImage) else Transfer(begun, upstream)

    def nearest(self, metadata: ImageMetadata, upstream: Source) -> Source:
        """See `BlobStore.nearest`: bytes always come from upstream."""
        return upstream

    async def journal(self, metadata: ImageMetadata) -> PartialFile | StoredImage:
        """Begin, resume or follow an image's journal, or return the image. Raises StoreUnavailable."""
        return await self._run(self._begin, metadata)

    async def ahead(self, image_hash: str, published: Callable[[], Awaitable[None]]) -> Remote | None:
        """See `BlobStore.ahead`: there is no such place."""
        return None

    async def make_room(self, wanted: int) -> bool:
        """See `BlobStore.make_room`. It evicts nothing when what may be evicted is not enough."""
        try:
            return await self._run(self._space.make_room, wanted)
        except StoreUnavailable:
            return False

    async def list(self) -> Sequence[StoredInfo]:
        """See `BlobStore.list`."""
        return await self._run(self._layout.list)

    async def served(self, image_hash: str) -> None:
        """See `BlobStore.served`."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._touch, image_hash)

    async def verify(
        self, image_hash: str, *, rate: float | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> Verified:
        """Hash an image again, reading `rate` bytes per second at most; a bad one is set aside."""
        clock = asyncio.get_running_loop().time
        began = clock()
        verification = await self._run(Verification, self._layout, image_hash)
        while await self._run(verification.step):
            progress(verification.position)
            if rate is not None:
                await asyncio.sleep(began + verification.position / rate - clock())
        return await self._run(verification.conclude)

    async def use(self) -> Use:
        """Return how full the store is. Raises StoreUnavailable."""
        return await self._run(self._space.use)

    async def sizes(self) -> Mapping[str, int]:
        """Return the size of everything that is where an image would be, by hash, whole or not.

        Raises StoreUnavailable.
        """
        return await self._run(self._layout.sizes)

    async def pin(self, image_hash: str, *, pinned: bool) -> None:
        """Pin a stored image, so that it is never evicted, or unpin it. Raises StoreUnavailable."""
        await self._run(self._layout.pins.pin, image_hash, pinned=pinned)

    async def remove(self, image_hash: str, *, cut: bool = False) -> bool:
        """Remove an image. Returns False when it is being verified again right now.

        Running downloads can read on to the end; with `cut` they are cut off, in every process.
        """
        return await self._run(self._remove, image_hash, cut)

    async def collect(self, *, dry_run: bool) -> Collected:
        """Clear away what can go without loss, and evict down to the bounds. Raises StoreUnavailable."""
        return await self._run(self._space.collect, dry_run=dry_run)

    async def scrubbing(self) -> int | None:
        """Try to become the one process that scrubs; return a descriptor to close, or None if another process is."""
        return await self._run(self._lock_for_scrubbing)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking code in the pool; failures of the store become StoreUnavailable, with an explanation."""

        def call() -> T:
            try:
                return function(*args, **kwargs)
            except OSError as error:
                log.debug("the store at %s fails: %s", self.root, error)
                raise StoreUnavailable(f"the mirror's store fails: {error.strerror or 'input/output error'}") from error

        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    # Everything below blocks, and runs in the pool.

    def _make_directories(self) -> None:
        rooms = (self._images, self._partial, self._quarantine)
        if not all(directory.exists() for directory in rooms):
            for directory in rooms:
                directory.mkdir(parents=True, exist_ok=True)
            sync_directory(self.root)

    def _prepare(self) -> None:
        self._make_directories()
        for leftover in list(leftovers(self._layout)):
            if carry_out(self._layout, leftover):
                log.info(
                    "removed %s %s: %s",
                    leftover.kind,
                    leftover.path.name,
                    leftover.reason,
                    extra=event(f"{leftover.kind}.removed"),
                )

    def _probe(self) -> None:
        self._make_directories()  # the disk may have been mounted again
        for room in (self._partial, self._images):  # where bytes arrive, and where they get their name
            with tempfile.TemporaryFile(dir=room) as file:
                file.write(b"pps-mirror")
                file.flush()
                os.fsync(file.fileno())

    def _identify(self, image_hash: str) -> tuple[object, ...] | None:
        if not is_hash(image_hash) or (file := self._layout.file(image_hash)) is None or is_recalled(file):
            return None
        return image_hash, Identity.of(file)

    def _open(self, image_hash: str) -> StoredImage | None:
        metadata = self._layout.metadata(image_hash)
        if metadata is None:
            return None
        try:
            file = SharedFile(os.open(self._images / image_hash / "image", os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            return None
        stat = os.fstat(file.fd)
        found = Identity.of(stat)
        if is_recalled(stat) or found.size != metadata.size or not verified_at(self._images / image_hash, found):
            return None
        return StoredImage(metadata, file)

    def _begin(self, metadata: ImageMetadata) -> PartialFile | StoredImage:
        self._make_directories()
        path = self._partial / metadata.hash
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                ours = lock(fd)
                # The process that held the lock may have published or removed the file since we opened it.
                if names(path, os.fstat(fd)):
                    if ours and (image := self._open(metadata.hash)) is not None:
                        path.unlink()
                        os.close(fd)
                        return image
                    if not ours:
                        return self._partial_file(path, fd, metadata, ours=False)
                    length = os.fstat(fd).st_size
                    if not adopt(self._layout, metadata, length):
                        with self._space.reserved(metadata, metadata.size - length):
                            return self._partial_file(path, fd, metadata, ours=True)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _partial_file(self, path: Path, fd: int, metadata: ImageMetadata, *, ours: bool) -> PartialFile:
        return PartialFile(path, fd, metadata, ours=ours, images=self._images, quarantine=self._quarantine)

    def _touch(self, image_hash: str) -> None:
        try:
            (self._images / image_hash / "served").touch()
        except FileNotFoundError:
            return  # served while it is still being received
        except OSError as error:
            log.debug("cannot note that %s was served: %s", image_hash, error)

    def _remove(self, image_hash: str, cut: bool) -> bool:
        if self._layout.file(image_hash) is None and not remove_partial(self._partial / image_hash):
            return False
        if cut:
            recall(self._images / image_hash / "image")
        remove_image(self._layout, image_hash)
        return True

    def _lock_for_scrubbing(self) -> int | None:
        fd = os.open(self._images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if lock(fd):
            return fd
        os.close(fd)
        return None


def _keep_all(images: Sequence[StoredInfo], current: str | None, read: Collection[str]) -> Sequence[StoredInfo]:
    return ()
