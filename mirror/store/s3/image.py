"""A stored image that is streamed from the bucket, with nothing of it on the disk.

Until this process has read all bytes of that version of the object, and they were right, the last of them are held
back: a whole read is hashed as it goes; one of a part waits for a verification in the background.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from mirror.metadata import ImageMetadata
from mirror.store.base import Cut
from mirror.store.s3.bucket import Bucket, Gone, Version
from mirror.store.s3.trouble import BucketFailed
from mirror.store.s3.versions import Versions
from mirror.store.shared_file import SharedFile


class BucketImage:
    """A `Body`. `verify` reads the object once for all who wait for that; the last `holdback` bytes do."""

    def __init__(
        self,
        bucket: Bucket,
        metadata: ImageMetadata,
        version: Version,
        versions: Versions,
        *,
        holdback: int,
        verify: Callable[[], Awaitable[bool]],
    ) -> None:
        self.metadata = metadata
        self._bucket = bucket
        self._version = version
        self._versions = versions
        self._held = max(0, metadata.size - holdback)
        self._verify = verify

    async def available(self, offset: int) -> int:
        """See `Body.available`."""
        return self.metadata.size

    def file_at(self, offset: int) -> SharedFile | None:
        """See `Body.file_at`."""
        return None

    async def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """See `Body.pieces`."""
        try:
            if self._versions.trusted(self.metadata.hash, self._version):
                given = self._read(start, stop)
            elif start == 0 and stop == self.metadata.size:
                given = self._hashed()
            else:
                given = self._part(start, stop)
            async for piece in given:
                yield piece
        except (Gone, BucketFailed) as error:
            raise Cut(f"the rest cannot be had: {error}") from error

    def _read(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        return self._bucket.read(f"images/{self.metadata.hash}", start, stop, self._version.etag)

    async def _hashed(self) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        digest = hashlib.sha256()
        position, last = 0, []
        async for piece in self._read(0, self.metadata.size):
            await loop.run_in_executor(None, digest.update, piece)
            given = piece[: max(0, self._held - position)]
            position += len(piece)
            if given:
                yield given
            if len(given) < len(piece):
                last.append(piece[len(given) :])
        if digest.hexdigest() != self.metadata.hash:
            self._versions.distrust(self.metadata.hash, self._version)
            raise Cut(f"the bucket has other bytes under this hash: their sha256 is {digest.hexdigest()}")
        self._versions.trust(self.metadata.hash, self._version)
        for piece in last:
            yield piece

    async def _part(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        verifying = asyncio.ensure_future(self._verify())
        if start < self._held:
            async for piece in self._read(start, min(stop, self._held)):
                yield piece
        if stop > self._held:
            if not await verifying:
                raise Cut("the bucket has other bytes under this hash")
            async for piece in self._read(max(start, self._held), stop):
                yield piece
