"""An upstream inside the process, which does to each request for the image what a script says."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import aiohttp
from multidict import CIMultiDict

from mirror.model.caller import Caller
from mirror.upstream.client import ImageResponse
from mirror.upstream.rate_limit import Throttle
from tests.support.scripted import metadata_of

HOLDBACK = 2000


PIECE = 1500


SIZES = (20_000, 20_000, 9_000, 100)
"""Bytes of the images: two of one size, and one that is smaller than what is held back."""


IMAGES = [random.Random(number).randbytes(size) for number, size in enumerate(SIZES)]


METADATA = [metadata_of(image) for image in IMAGES]


@dataclass(frozen=True)
class Fate:
    """What becomes of one request for the image; as it stands, nothing. `after` counts body bytes."""

    after: int | None = None
    then: str = "cut"  # or "end" (cleanly), "hang" (until released)
    drop: bool = False
    status: int | None = None
    redirected: bool = True
    ranges: bool = True
    etag: str = "right"  # or "none", "weak", "other"
    shift: int = 0
    total: int = 0
    wrong_byte: int | None = None

    @property
    def lies(self) -> bool:
        """Whether a fill may fail of it; what only breaks is no excuse."""
        lasting = self.status is not None and self.status < 500 and self.status != 429
        return (
            lasting
            or not self.ranges
            or self.etag != "right"
            or bool(self.shift or self.total)
            or self.wrong_byte is not None
            or (self.after is not None and self.then == "end")
        )


class _Content:
    """The body of an answer, as `aiohttp.StreamReader` gives it."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    def read_nowait(self) -> bytes:
        return b""

    def iter_any(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def read(self, _most: int) -> bytes:
        return b"{}"


@dataclass
class _Answer:
    status: int
    headers: CIMultiDict[str]
    content_length: int | None
    content: _Content
    connection: None = None  # nothing can be taken past the reader

    def close(self) -> None:
        """The rest is not wanted."""


class ScriptedUpstream:
    """Has one image at a time, as DataRobot does, and does to each request what the next fate says.

    The mirror may use so many `connections` for an image.
    """

    def __init__(self, connections: int = 1) -> None:
        self.connections = connections
        self.current = 0
        self.fates: list[Fate] = []
        self.blamed: set[int] = set()
        self.tainted: set[int] = set()
        self.filling: list[int] = []
        self.throttle = Throttle()
        self._gate = asyncio.Event()

    def release(self) -> None:
        """Let go on what hangs now."""
        self._gate.set()
        self._gate = asyncio.Event()

    @asynccontextmanager
    async def image(self, caller: Caller, headers: dict[str, str]) -> AsyncIterator[ImageResponse]:
        """See `Upstream.image`; the caller's id says which image it thinks that it will get."""
        wanted = int(caller.request_id)
        assert wanted not in self.filling, "two transfers of one image at once"
        self.filling.append(wanted)
        fate = self.fates.pop(0) if self.fates else Fate()
        try:
            await asyncio.sleep(0)
            if fate.lies or self.current != wanted:  # it may have rolled over while the request was on its way
                self.blamed.add(wanted)
            if fate.drop:
                raise aiohttp.ServerDisconnectedError
            answer = cast("aiohttp.ClientResponse", self._answer(fate, wanted, headers))
            yield ImageResponse(answer, f"{wanted}.store.example", redirected=fate.redirected)
        finally:
            self.filling.remove(wanted)

    @asynccontextmanager
    async def more_of(self, response: ImageResponse, headers: dict[str, str]) -> AsyncIterator[_Answer]:
        """See `Upstream.more_of`."""
        wanted = int(response.host.partition(".")[0])
        assert wanted in self.filling, "a range of an image whose transfer is over"
        fate = self.fates.pop(0) if self.fates else Fate()
        await asyncio.sleep(0)
        if fate.lies or self.current != wanted:
            self.blamed.add(wanted)
        if fate.drop:
            raise aiohttp.ServerDisconnectedError
        yield self._answer(fate, wanted, headers)

    def _answer(self, fate: Fate, wanted: int, headers: dict[str, str]) -> _Answer:
        image = IMAGES[self.current]
        etag = {"right": f'"{self.current}"', "weak": f'W/"{self.current}"', "other": '"other"'}.get(fate.etag)
        answer = CIMultiDict({"ETag": etag} if etag else {})
        if fate.status is not None:
            return _Answer(fate.status, answer, 2, _Content(_nothing()))
        asked = headers.get("Range")
        if asked is None or not fate.ranges or headers.get("If-Range") not in {None, f'"{self.current}"'}:
            return _Answer(200, answer, len(image), _Content(self._pieces(fate, wanted, image, 0)))
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(image)) + bool(last), len(image))
        if start >= len(image):
            answer["Content-Range"] = f"bytes */{len(image)}"
            return _Answer(416, answer, 2, _Content(_nothing()))
        start = min(max(0, start + fate.shift), stop - 1)
        answer["Content-Range"] = f"bytes {start}-{stop - 1}/{len(image) + fate.total}"
        return _Answer(206, answer, stop - start, _Content(self._pieces(fate, wanted, image[:stop], start)))

    async def _pieces(self, fate: Fate, wanted: int, image: bytes, start: int) -> AsyncIterator[bytes]:
        stop = len(image) if fate.after is None else min(len(image), start + fate.after)
        for first in range(start, stop, PIECE):
            piece = bytearray(image[first : min(stop, first + PIECE)])
            if fate.wrong_byte is not None and first <= fate.wrong_byte < first + len(piece):
                piece[fate.wrong_byte - first] ^= 1
            if piece != IMAGES[wanted][first : first + len(piece)]:
                self.tainted.add(wanted)
            await asyncio.sleep(0)
            yield bytes(piece)
        if fate.after is None or fate.then == "end":
            return
        if fate.then == "hang":
            await self._gate.wait()
        raise aiohttp.ClientPayloadError


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece
