"""The registry's view of an archive: an image's directory with the archive in it, indexed as the mirror does."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror.model.metadata import ImageMetadata
from mirror.registry.blob_reader import read
from mirror.registry.index import ArchiveIndex, Blob
from mirror.registry.indexer import build
from mirror.registry.saved_index import load
from tests.support.layouts import sha256
from tests.support.metadata import GOOD


@dataclass(frozen=True, slots=True)
class Stored:
    """An archive in the `directory` of its image, open as `fd`."""

    directory: Path
    metadata: ImageMetadata
    fd: int

    def build(self, progress: Callable[[int], None] = lambda _: None) -> ArchiveIndex:
        """Index it."""
        return build(self.fd, self.directory, self.metadata, progress=progress)

    def load(self) -> ArchiveIndex | None:
        """Return the index that was made before."""
        return load(self.directory, self.metadata)

    def read(self, index: ArchiveIndex, blob: Blob, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes of a blob."""
        return b"".join(read(self.fd, index.seek, blob, start, blob.size if stop is None else stop))


@contextmanager
def stored(directory: Path, archive: bytes, image_id: str | None = None) -> Iterator[Stored]:
    """Place an archive below `directory`."""
    directory = directory / sha256(archive)
    directory.mkdir(parents=True)
    path = directory / "image"
    path.write_bytes(archive)
    described = GOOD | {"hash": sha256(archive), "imageSize": max(1, len(archive)), "dockerImageId": image_id}
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Stored(directory, ImageMetadata.parse(json.dumps(described).encode()), fd)
    finally:
        os.close(fd)


def zipped(tar: bytes, level: int = 6) -> bytes:
    """Return the tar as gzip."""
    return gzip.compress(tar, level, mtime=0)
