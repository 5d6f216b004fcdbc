"""A source of bytes that does what a script says, and a journal for a fill to write to."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path

from mirror.images.retention import evictable
from mirror.model.metadata import ImageMetadata
from mirror.model.source import Broken, NoSource, Stream
from mirror.store.base import Transfer
from mirror.store.disk.partial_file import PartialFile
from mirror.store.disk.store import DiskStore


def metadata_of(image: bytes, name: str = "image.tar.gz") -> ImageMetadata:
    """Metadata that promises exactly `image`."""
    digest = sha256(image).hexdigest()
    raw = (
        f'{{"hash": "{digest}", "hashAlgorithm": "SHA256", "imageSize": {len(image)}, "filename": "{name}", '
        '"created": "2024-01-02T03:04:05Z"}'
    ).encode()
    return ImageMetadata(digest, len(image), name, datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), raw)


@dataclass(frozen=True)
class Opening:
    """What the source does the next time it is opened: `count` bytes, then the `end`.

    `image` is what it serves instead of the right bytes; `ranges` whether it begins where it is asked to;
    `hang` whether it falls silent after them.
    """

    count: int
    clean: bool = False
    ranges: bool = True
    image: bytes | None = None
    error: Exception | None = None
    etag: str | None = '"v1"'
    hang: bool = False


class ScriptedSource:
    """A `Source` of `image`. When the script is over it serves everything. `asked` is what it was asked for.

    With `if_range` it begins at 0 when it is asked for what another validator names.
    """

    def __init__(
        self, image: bytes, script: Iterable[Opening] = (), piece: int = 1000, *, if_range: bool = False
    ) -> None:
        self.image = image
        self.if_range = if_range
        self.script = list(script)
        self.piece = piece
        self.asked: list[tuple[int, str | None]] = []
        self.sent = 0

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Stream]:
        """See `mirror.model.source.Source.open`."""
        self.asked.append((offset, validator))
        act = self.script.pop(0) if self.script else Opening(len(self.image), clean=True)
        if act.error is not None:
            raise act.error
        begin = offset if act.ranges and not (self.if_range and validator not in {None, act.etag}) else 0
        yield Stream(begin, act.etag, self._pieces(act, begin))

    async def _pieces(self, act: Opening, begin: int) -> AsyncIterator[bytes]:
        data = (self.image if act.image is None else act.image)[begin : begin + act.count]
        for first in range(0, len(data), self.piece):
            await asyncio.sleep(0)
            self.sent += len(data[first : first + self.piece])
            yield data[first : first + self.piece]
        if act.hang:
            await asyncio.Event().wait()
        if not act.clean:
            raise Broken("cut by the script")


@asynccontextmanager
async def disk_store(
    root: Path, min_free: int = 0, *, max_size: int | None = None, keep: int = 0
) -> AsyncIterator[DiskStore]:
    """A real store on the disk."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        retention = partial(evictable, keep=keep)
        store = DiskStore(root, min_free=min_free, max_size=max_size, retention=retention, pool=pool)
        await store.prepare()
        yield store


async def begin(store: DiskStore, metadata: ImageMetadata) -> PartialFile:
    """Begin to receive an image that is not stored."""
    begun = await store.begin(metadata, NoSource())
    assert isinstance(begun, Transfer)
    assert isinstance(begun.journal, PartialFile)
    return begun.journal


async def put(store: DiskStore, image: bytes) -> ImageMetadata:
    """Store an image."""
    metadata = metadata_of(image)
    journal = await begin(store, metadata)
    await journal.append([image])
    await journal.publish()
    await journal.close()
    return metadata
