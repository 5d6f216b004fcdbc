"""Receives a body of known length into large buffers that are used again."""

import asyncio
from collections import deque
from collections.abc import Callable

import aiohttp

BUFFER = 1 << 20
"""Bytes of a buffer. When they wait to be taken, nothing more is read, and TCP slows the sender down."""


class BodyReceiver(asyncio.BufferedProtocol):
    """The protocol of a `transport` whose next `left` bytes are a body.

    `silence` is how many seconds it may take until something comes, if that is limited. `lost` is called when the
    connection has ended.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        left: int,
        silence: float | None,
        lost: Callable[[Exception | None], None],
    ) -> None:
        self._transport = transport
        self._left = left
        self._silence = silence
        self._lost = lost
        self._buffers = Buffers()
        self._buffer = memoryview(b"")
        self._filled = self._taken = 0
        self._ended = False
        self._news = asyncio.Event()

    async def take(self) -> memoryview:
        """Return what has come since the last call: at least one byte, but none at the body's end.

        It may be kept and sliced for as long as it is needed. Raises ClientPayloadError when the connection ends before
        the body, TimeoutError when nothing comes.
        """
        while self._taken == self._filled and self._left:
            if self._ended:
                raise aiohttp.ClientPayloadError("the connection ended before the body")
            self._news.clear()
            async with asyncio.timeout(self._silence):
                await self._news.wait()
        piece = self._buffer[self._taken : self._filled]
        self._taken = self._filled
        if self._is_full() and self._left:
            self._transport.resume_reading()
        return piece

    def get_buffer(self, sizehint: int) -> memoryview:
        """Tell asyncio where to put the next bytes: never beyond the end of the body."""
        if self._is_full():
            self._buffer = memoryview(self._buffers.free())[: self._left]
            self._filled = self._taken = 0
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hear from asyncio that bytes were put there."""
        self._filled += nbytes
        self._left -= nbytes
        if self._is_full():
            self._transport.pause_reading()
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear from asyncio that nothing more will come."""
        self._ended = True
        self._news.set()
        self._lost(exc)

    def _is_full(self) -> bool:
        return self._filled == len(self._buffer)


class Buffers:
    """Buffers of one transfer: touching fresh memory for each would cost as much as receiving into it."""

    def __init__(self) -> None:
        self._all: deque[bytearray] = deque()

    def free(self) -> bytearray:
        """Return the buffer that was given out first, if nobody has a view of its bytes any more; else a new one."""
        if not self._all or not _is_free(self._all[0]):
            self._all.appendleft(bytearray(BUFFER))
        self._all.rotate(-1)
        return self._all[-1]


def _is_free(buffer: bytearray) -> bool:
    """Whether no memoryview shows the buffer: as long as one does, Python refuses to resize it."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    del buffer[-1]
    return True
