"""Which stored images can be pulled, by which tags, and what keeps the others from it: what the registry offers now.

An image can be pulled when it is on the disk, its bytes are verified, and its archive is indexed. All of that is read
from the disk, so every process of a store, and a command without a running mirror, finds the same.
"""

import asyncio
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from mirror.common.cached import Cached
from mirror.model.metadata import ImageMetadata
from mirror.model.status import ArchiveState, Indexing
from mirror.registry import saved_index, seek_index
from mirror.registry.index import ArchiveIndex, Blob, NotAnArchive
from mirror.registry.progress import IndexProgress
from mirror.registry.tags import LATEST, Named, aliases, by_tag, of_archive, of_metadata
from mirror.store.base import StoredInfo
from mirror.store.disk.store import DiskStore

FRESH = 0.2
"""Seconds for which what was found is used again: many requests come at once."""

Stamp = tuple[object, ...]
Read = tuple[Stamp, ArchiveIndex | ArchiveState]


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored image: whether it can be pulled (`state`), by which `tags`, and what it holds, once that is known."""

    info: StoredInfo
    state: ArchiveState
    tags: Sequence[str]
    index: ArchiveIndex | None = None


@dataclass(frozen=True, slots=True)
class Entries:
    """All stored images, newest first."""

    all: Sequence[Entry] = ()

    @property
    def ready(self) -> Sequence[Entry]:
        """Those that can be pulled."""
        return [entry for entry in self.all if entry.index is not None]

    @property
    def aliases(self) -> Sequence[str]:
        """The names of repositories that archives give their images."""
        return [name for entry in self.ready if entry.index for name in aliases(entry.index.repo_tags)]

    def by_hash(self, image_hash: str) -> Entry | None:
        """Return the image of that hash."""
        return next((entry for entry in self.all if entry.info.metadata.hash == image_hash), None)

    def by_tag(self, tag: str, *, ready: bool = False) -> Entry | None:
        """Return the image that has the tag: the one stored last, of those that are `ready` if it is to be."""
        image_hash = _tags(self.ready if ready else self.all).get(tag)
        return None if image_hash is None else self.by_hash(image_hash)

    def tags_of(self, image_hash: str, *, current: bool) -> Sequence[str]:
        """Return the tags that mean this image, `latest` too if it is the current one; none of one not on the disk."""
        tags = [tag for tag, whose in _tags(self.all).items() if whose == image_hash]
        return [*tags, LATEST] if current and self.by_hash(image_hash) else tags

    def by_manifest(self, digest: str) -> Entry | None:
        """Return the image whose manifest has that digest."""
        return next((entry for entry in self.ready if entry.index and entry.index.manifest_digest == digest), None)

    def with_blob(self, digest: str) -> Sequence[tuple[Entry, Blob]]:
        """Return the images that have the blob of that digest: releases share layers."""
        found = ((entry, entry.index.blobs.get(digest)) for entry in self.ready if entry.index)
        return [(entry, blob) for entry, blob in found if blob is not None]

    @property
    def tags(self) -> Sequence[str]:
        """The tags by which images can be pulled, `latest` apart, in the order of ASCII."""
        return sorted(_tags(self.ready))


class Catalog:
    """The images of `disk`. Reads files in `pool`; `progress` says how far those are that are being indexed."""

    def __init__(self, disk: DiskStore, pool: Executor, progress: IndexProgress) -> None:
        self.disk = disk
        self._pool = pool
        self._progress = progress
        self._read: Mapping[str, Read] = {}
        self._doubted: set[str] = set()
        self._entries = Cached(self._look, FRESH)

    async def entries(self) -> Entries:
        """Return what is stored now, or was less than FRESH seconds ago. Raises StoreUnavailable."""
        return await self._entries.get()

    def expire(self) -> None:
        """Look again at the next call: something has changed."""
        self._entries.expire()

    def doubt(self, image_hash: str) -> None:
        """Read an image's index again at the next call: a blob could not be read, so its files may have rotted."""
        self._doubted.add(image_hash)
        self.expire()

    def directory(self, image_hash: str) -> Path:
        """Return where the image and what belongs to it are."""
        return self.disk.root / "images" / image_hash

    async def _look(self) -> Entries:
        infos = await self.disk.list()
        doubted, self._doubted = self._doubted, set()
        indexes = await asyncio.get_running_loop().run_in_executor(self._pool, self._indexes, infos, doubted)
        return Entries([self._entry(info, index) for info, index in zip(infos, indexes, strict=True)])

    def _entry(self, info: StoredInfo, index: ArchiveIndex | ArchiveState) -> Entry:
        tags = of_metadata(info.metadata)
        if isinstance(index, ArchiveIndex):
            found = tuple(dict.fromkeys((*tags, *of_archive(index.repo_tags))))
            return Entry(info, ArchiveState(Indexing.READY, warnings=index.warnings), found, index)
        if index.is_open and (progress := self._progress.get(info.metadata.hash)) is not None:
            index = ArchiveState(Indexing.RUNNING, done=progress.done, seconds_left=progress.seconds_left)
        return Entry(info, index, tags)

    # Everything below blocks, and runs in the pool.

    def _indexes(self, infos: Sequence[StoredInfo], doubted: Collection[str]) -> Sequence[ArchiveIndex | ArchiveState]:
        known = {image_hash: read for image_hash, read in self._read.items() if image_hash not in doubted}
        self._read = {info.metadata.hash: self._index(info, known.get(info.metadata.hash)) for info in infos}
        return [self._read[info.metadata.hash][1] for info in infos]

    def _index(self, info: StoredInfo, known: Read | None) -> Read:
        directory = self.directory(info.metadata.hash)
        stamp = _stamp(directory, info)
        if known is not None and known[0] == stamp:
            return known
        if info.verified_at is None:
            return stamp, ArchiveState(Indexing.WAITING, "its bytes have to be verified first")
        return stamp, _load(directory, info.metadata)


def _load(directory: Path, metadata: ImageMetadata) -> ArchiveIndex | ArchiveState:
    try:
        return saved_index.load(directory, metadata) or ArchiveState(Indexing.WAITING)
    except NotAnArchive as refusal:
        return ArchiveState(Indexing.REFUSED, str(refusal))
    except OSError as error:
        return ArchiveState(Indexing.WAITING, f"its index cannot be read: {error.strerror}")


def _stamp(directory: Path, info: StoredInfo) -> Stamp:
    """Return what changes whenever what is known of an image's archive may have changed."""
    files = (_file(directory / name) for name in ("image", saved_index.FILE, seek_index.NAME))
    return info.verified_at is not None, *files


def _file(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116 - of four files for each image
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _tags(entries: Sequence[Entry]) -> Mapping[str, str]:
    return by_tag(Named(entry.info.metadata.hash, entry.info.stored_at, entry.tags) for entry in entries)
