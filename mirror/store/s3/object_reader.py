"""Reads large objects: continues after a broken connection, and divides memory among all that read."""

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Protocol

from mirror.common.log import event
from mirror.common.several_ranges import SeveralRanges, Transfer
from mirror.store.s3.clients import Clients
from mirror.store.s3.errors import TROUBLE, BucketFailed, failed
from mirror.store.s3.objects import ObjectGone
from mirror.store.s3.outage import Outage

PIECE = 256 << 10
LEAST_PIECE = 16 << 10
READING = 4 << 20
"""Bytes given at a time: at most, at least, and to all readers together unless that would be less than the least."""

CONNECTIONS = 4
WINDOW = 16 << 20
"""Over how many connections one reader, as long as it is the only one, reads where one is slow (see
`mirror.common.several_ranges`); and how many bytes of these may wait for their turn."""

RETRY_SECONDS = 60.0
"""Seconds without a byte after which `read` gives up."""

log = logging.getLogger(__name__)

_SHORTER = frozenset({"416", "InvalidRange"})


class Asking(Protocol):
    """Turns a failure of the bucket into words (see `mirror.store.s3.bucket.Bucket`)."""

    def __call__(self, operation: str, *, name: str) -> AbstractAsyncContextManager[None]:
        """Make a request for the object `name`."""


class ObjectReader:
    """Reads objects of the bucket `bucket`; `key` turns a name into the key that the server knows."""

    def __init__(
        self,
        bucket: str,
        clients: Clients,
        outage: Outage,
        asking: Asking,
        key: Callable[[str], Mapping[str, str]],
    ) -> None:
        self._bucket = bucket
        self._clients = clients
        self._outage = outage
        self._asking = asking
        self._object = key
        self._reading = 0
        self._readers = 0

    async def read(
        self,
        name: str,
        start: int,
        stop: int,
        etag: str | None = None,
        *,
        patience: float = RETRY_SECONDS,
        eager: bool = False,
        seen: Callable[[str], None] = lambda _: None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, stop) of version `etag` of an object, continuing after a broken connection.

        Without `etag` it is the version that is there first, and `seen` is called with it. Raises ObjectGone, and
        BucketFailed when no byte arrives for `patience` seconds; if `eager`, at once when there will be no first byte.
        """
        read = partial(self._transfer, name, etag=etag, patience=patience, seen=seen)
        open_range = None if etag is None else lambda first, last: aclosing(read(first, last))
        ranges = SeveralRanges(stop, self._connections, partial(self._say, name), WINDOW)
        self._readers += 1
        try:
            async with aclosing(ranges.pieces(Transfer(start, read(start, stop, eager=eager), open_range))) as pieces:
                async for piece in pieces:
                    yield bytes(piece)  # these are bytes, and not copied
        finally:
            self._readers -= 1

    def _connections(self) -> int:
        """Return over how many connections one object is read: memory is there for one reader of several."""
        return CONNECTIONS if self._readers == 1 else 1

    def _say(self, name: str, words: str, connections: int, *, refused: bool = False) -> None:
        said = event("bucket.connections", connections=connections, refused=refused)
        log.info("%s in the bucket %s is read over %s", name, self._bucket, words, extra=said)

    async def _transfer(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        etag: str | None,
        patience: float,
        seen: Callable[[str], None],
        eager: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """Read the bytes [start, stop) over one connection after the other: see `read`."""
        clock = asyncio.get_running_loop().time
        progressed = clock()
        for attempt in itertools.count():
            try:
                async with self.opened(name, start, stop) as (found, piece, body):
                    if etag is not None and found != etag:
                        raise ObjectGone(f"{name} is another version now")
                    if etag is None:
                        seen(etag := found)
                    while piece:
                        start += len(piece)
                        progressed, attempt, eager = clock(), 0, False
                        yield piece
                        piece = await body.read(min(self._piece(), stop - start)) if start < stop else b""
            except TROUBLE as error:
                trouble = failed(error, self._bucket, "GetObject")
            except BucketFailed as error:
                trouble = error
            else:
                trouble = BucketFailed(f"the bucket {self._bucket} cannot be used: {name} ends early")
            if start >= stop:
                return
            if clock() - progressed > patience or (eager and (self._outage.lasts or trouble.code)):
                raise trouble
            await asyncio.sleep(min(5.0, 0.1 * 2.0 ** min(attempt, 6)) * random.uniform(0.5, 1.0))  # noqa: S311

    @asynccontextmanager
    async def opened(self, name: str, start: int, stop: int) -> AsyncIterator[tuple[str, bytes, Any]]:
        """Return the object's ETag, its first bytes (which show that it can be read), and a reader of the others."""
        async with AsyncExitStack() as stack:
            body = None
            try:
                async with self._asking("GetObject", name=name):
                    wanted = {**self._object(name), "Range": f"bytes={start}-{stop - 1}"}
                    answer = await stack.enter_async_context(self._clients.asked("get_object", **wanted))
                    body = await stack.enter_async_context(answer["Body"])
                    stack.enter_context(self._read_from())
                    first = await body.read(min(self._piece(), stop - start))
            except BucketFailed as error:
                if error.code not in _SHORTER:
                    raise
            if body is None:
                raise ObjectGone(f"{name} is not there any more")
            yield str(answer["ETag"]), first, body

    @contextmanager
    def _read_from(self) -> Iterator[None]:
        """Count as a reader within the context: readers share the memory."""
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    def _piece(self) -> int:
        return max(LEAST_PIECE, min(PIECE, READING // self._reading))
