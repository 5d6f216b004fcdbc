"""Reads large objects: continues after a broken connection, and divides memory among all that read."""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Protocol

from mirror.store.s3.clients import Clients
from mirror.store.s3.errors import TROUBLE, BucketFailed, failed
from mirror.store.s3.objects import ObjectGone
from mirror.store.s3.outage import Outage

PIECE = 256 << 10
LEAST_PIECE = 16 << 10
READING = 4 << 20
"""Bytes given at a time: at most, at least, and to all readers together unless that would be less than the least."""

RETRY_SECONDS = 60.0
"""Seconds without a byte after which `read` gives up."""

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
