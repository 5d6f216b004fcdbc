"""The kinds of stores that pass one suite, wired as a mirror wires them, over real directories and a real S3 server."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mirror.config import Config
from mirror.images.fill import Fill
from mirror.images.fill_outcome import FillFailed
from mirror.model.metadata import ImageMetadata
from mirror.store.base import Body, Transfer
from mirror.store.s3.timings import Timings
from mirror.wiring.stores import Stores, open_stores
from tests.support.s3.fixtures import TestBucket
from tests.support.scripted import Opening, ScriptedSource, metadata_of

PART = 5 << 20
HOLDBACK = 64 << 10
PIECE = 256 << 10


def image_of(size: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat."""
    return random.Random(f"{size} {seed}").randbytes(size)


async def read(body: Body, start: int = 0, stop: int | None = None) -> bytes:
    """Read as a client's download does. Raises FillFailed or Cut where that would be reset."""
    stop = body.metadata.size if stop is None else stop
    received = bytearray()
    while start < stop:
        limit = min(stop, await body.available(start))
        if (file := body.file_at(start)) is None:
            async with aclosing(body.pieces(start, stop)) as pieces:
                async for piece in pieces:
                    received += piece
            break
        piece = file.read(start, limit)
        received += piece
        start += len(piece)
    return bytes(received)


@dataclass
class Running:
    """A fill that runs as a task."""

    fill: Fill
    source: ScriptedSource
    task: asyncio.Task[None]

    async def end(self) -> None:
        """Wait for its verdict. Raises FillFailed."""
        await self.task
        await self.fill.ended()

    async def cancel(self) -> None:
        """End it as a mirror that stops does."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Replica:
    """The stores of one process."""

    stores: Stores
    _fills: list[Running] = field(default_factory=list)

    async def begin(
        self, image: bytes, script: Iterable[Opening] = (), metadata: ImageMetadata | None = None
    ) -> Running:
        """Begin to fill an image, from a source that follows the script."""
        metadata = metadata or metadata_of(image)
        source = ScriptedSource(image, script, piece=PIECE)
        begun = await self.stores.front.begin(metadata, source)
        assert isinstance(begun, Transfer)
        fill = Fill(metadata, begun.source, begun.journal, holdback=HOLDBACK, retry=30)
        running = Running(fill, source, asyncio.create_task(fill.run()))
        self._fills.append(running)
        return running

    async def put(self, image: bytes, metadata: ImageMetadata | None = None) -> ImageMetadata:
        """Store an image in all its places."""
        running = await self.begin(image, metadata=metadata)
        await running.end()
        await self.settled()
        return running.fill.metadata

    async def settled(self) -> None:
        """Wait until nothing goes on in the background."""
        if self.stores.bucket is not None:
            await self.stores.bucket.background.settled()

    async def open(self, image_hash: str) -> Body:
        """A stored image; from the bucket by a fill, if that is what the store does."""
        if (image := await self.stores.front.open(image_hash)) is not None:
            return image
        (metadata,) = [info.metadata for info in await self.stores.front.list() if info.metadata.hash == image_hash]
        running = await self.begin(b"", metadata=metadata)
        return running.fill

    async def stop(self) -> None:
        """End all fills that still run."""
        for running in self._fills:
            await running.cancel()


class Kind:
    """One kind of store: disk, bucket, or a disk in front of a bucket. Replicas of a disk are processes of one host.

    A bucket has these `timings`.
    """

    def __init__(self, name: str, directory: Path, bucket: TestBucket | None, timings: Timings | None = None) -> None:
        self.name = name
        self.directory = directory
        self.bucket = bucket
        self.timings = timings
        self._replicas = 0

    @asynccontextmanager
    async def replica(self, **s3: object) -> AsyncIterator[Replica]:
        """One more process that shares the store; `s3` is more of that section."""
        self._replicas += 1
        path = self.directory / ("store" if self.bucket is None else f"store-{self._replicas}")
        store: dict[str, object] = {"path": str(path), "min_free": "1MiB", "holdback": HOLDBACK}
        if self.bucket is not None:
            store["s3"] = {**self.bucket.section, "local_copy": self.name == "tiered", **s3}
        config = Config.model_validate({"store": store})
        async with AsyncExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(8))
            stores = await stack.enter_async_context(open_stores(config, pool, timings=self.timings))
            if stores.disk is not None:
                await stores.disk.prepare()
            if stores.bucket is not None:
                await stores.bucket.capabilities.get()
            replica = Replica(stores)
            stack.push_async_callback(replica.stop)
            yield replica

    def images(self) -> set[str]:
        """The hashes of all that lies where images do, whole or not."""
        found = set()
        if self.name != "bucket":
            found |= {path.parent.name for path in self.directory.glob("store*/images/*/image")}
        if self.bucket is not None:
            found |= {name.removeprefix("images/") for name in self.bucket.names("images/") if "." not in name}
        return found


__all__ = ["HOLDBACK", "PART", "FillFailed", "Kind", "Replica", "Running", "image_of", "read"]
