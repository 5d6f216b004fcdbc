"""Streams a stored image from the bucket to one reader.

Its last bytes are held back until this process has read all bytes of that version of the object and found them right:
when a client reads the whole image, the bytes are hashed as they pass; when it reads a part, it waits for a
verification in the background.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from mirror.model.metadata import ImageMetadata
from mirror.store.base import Cut
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.objects import ObjectGone, Version
from mirror.store.s3.verified_versions import Versions
from mirror.store.shared_file import SharedFile

WRONG = "the bucket has other bytes under this hash"


@dataclass(frozen=True, slots=True)
class _AtHand:
    """The `first` bytes of `span`, already fetched, and where the others come from."""

    span: tuple[int, int]
    first: bytes
    stream: AsyncGenerator[bytes, None]


class BucketImage:
    """A `Remote`. `verify` starts the one verification of the object; the last `holdback` bytes wait for it."""

    def __init__(
        self,
        bucket: Bucket,
        metadata: ImageMetadata,
        version: Version,
        versions: Versions,
        *,
        holdback: int,
        verify: Callable[[], asyncio.Task[bool]],
    ) -> None:
        self.metadata = metadata
        self._bucket = bucket
        self._version = version
        self._versions = versions
        self._held = max(0, metadata.size - holdback)
        self._verify = verify
        self._at_hand: _AtHand | None = None

    async def ready(self, start: int, stop: int) -> None:
        """See `Remote.ready`."""
        if start < self._held and not self._trusted and not self._is_all(start, stop):
            stop = min(stop, self._held)
        stream = self._bucket.read(self._name, start, stop, self._version.etag, eager=True)
        try:
            self._at_hand = _AtHand((start, stop), await anext(stream), stream)
        except ObjectGone as error:
            raise Cut(f"it cannot be had: {error}") from error

    async def close(self) -> None:
        """See `Remote.close`."""
        if self._at_hand is not None:
            at_hand, self._at_hand = self._at_hand, None
            await at_hand.stream.aclose()

    async def available(self, offset: int) -> int:
        """See `Body.available`."""
        return self.metadata.size

    def file_at(self, offset: int) -> SharedFile | None:
        """See `Body.file_at`."""
        return None

    async def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """See `Body.pieces`."""
        if self._trusted:
            given = self._read(start, stop)
        elif self._is_all(start, stop):
            given = self._hashed()
        else:
            given = self._part(start, stop)
        try:
            async with aclosing(given):
                async for piece in given:
                    # other readers have read all of it
                    if self._versions.distrusted(self.metadata.hash, self._version):
                        raise Cut(WRONG)
                    yield piece
        except (ObjectGone, BucketFailed) as error:
            raise Cut(f"the rest cannot be had: {error}") from error

    @property
    def _name(self) -> str:
        return f"images/{self.metadata.hash}"

    @property
    def _trusted(self) -> bool:
        return self._versions.trusted(self.metadata.hash, self._version)

    def _is_all(self, start: int, stop: int) -> bool:
        return start == 0 and stop == self.metadata.size

    async def _read(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, stop), beginning with those already fetched."""
        at_hand, self._at_hand = self._at_hand, None
        # it was verified in the meantime, so it may be read to its end
        if at_hand is not None and at_hand.span != (start, stop):
            await at_hand.stream.aclose()
            at_hand = None
        stream = at_hand.stream if at_hand else self._bucket.read(self._name, start, stop, self._version.etag)
        async with aclosing(stream):
            if at_hand is not None:
                yield at_hand.first
            async for piece in stream:
                yield piece

    async def _hashed(self) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        digest = hashlib.sha256()
        position, last = 0, []
        async with aclosing(self._read(0, self.metadata.size)) as pieces:
            async for piece in pieces:
                await loop.run_in_executor(None, digest.update, piece)
                given = piece[: max(0, self._held - position)]
                position += len(piece)
                if given:
                    yield given
                if len(given) < len(piece):
                    last.append(piece[len(given) :])
        if digest.hexdigest() != self.metadata.hash:
            self._versions.distrust(self.metadata.hash, self._version)
            raise Cut(f"{WRONG}: their sha256 is {digest.hexdigest()}")
        self._versions.trust(self.metadata.hash, self._version)
        for piece in last:
            yield piece

    async def _part(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        verified = self._verify()
        if start < self._held:
            async with aclosing(self._read(start, min(stop, self._held))) as pieces:
                async for piece in pieces:
                    yield piece
        if stop > self._held:
            await self.close()  # nothing is read while we wait
            if not await asyncio.shield(verified):
                raise Cut(WRONG)
            async with aclosing(self._read(max(start, self._held), stop)) as pieces:
                async for piece in pieces:
                    yield piece
