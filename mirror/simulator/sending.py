"""Sends bytes of an image onto a connection, at a line's speed, with what a fault does to them on the way."""

import asyncio
import fcntl
import os
import random
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from mirror.simulator.faults import Fault
from mirror.simulator.images import Image
from mirror.simulator.record import Exchange
from mirror.simulator.state import State
from mirror.simulator.throttle import Throttle

_SENDFILE_PIECE = 8 << 20  # bytes; between two pieces the counters move and the throttle is asked
_WRITE_PIECE = 256 << 10  # bytes
_LINGER_NOT = struct.pack("ii", 1, 0)  # on, for zero seconds: close() resets
_FLUSH_SECONDS = 1.0

_Event = Literal["roll over", "hang", "cut"]


async def send_body(
    request: web.Request,
    response: web.StreamResponse,
    image: Image,
    start: int,
    stop: int,
    fault: Fault,
    state: State,
    exchange: Exchange,
) -> None:
    """Send the headers and the image's bytes from `start` to `stop` (exclusive; zeros beyond the image's end).

    Returns when the kernel has them all, the fault has cut the connection, or the client has left.
    """
    writer = await response.prepare(request)
    transport = request.transport
    if writer is None or transport is None:
        return
    if fault.send_extra or fault.declare_extra:
        response.force_close()  # the body is not what its headers say: nothing can follow it
    with suppress(ConnectionError):
        sender = _Sender(transport, writer, image, fault, state, exchange)
        try:
            position = start
            for offset, event in _events(fault, start, stop):
                await sender.send(position, offset)
                position = offset
                if event == "cut":
                    await cut(transport, reset=fault.reset)
                    return
                if event == "hang":
                    await state.wait_for_release()
                elif fault.roll_over is not None:
                    state.roll_over(fault.roll_over)
            await sender.send(position, stop)
        finally:
            sender.close()


def _events(fault: Fault, start: int, stop: int) -> Iterator[tuple[int, _Event]]:
    """Return what happens at which offset of the image, in order, as far as the body goes."""
    events: list[tuple[int, _Event]] = []
    if fault.roll_over is not None and fault.roll_over_after:
        events.append((start + fault.roll_over_after, "roll over"))
    if fault.hang_after is not None:
        events.append((start + fault.hang_after, "hang"))
    if fault.cut_after is not None:
        events.append((start + fault.cut_after, "cut"))
    if fault.cut_within is not None:
        events.append((start + random.randrange(fault.cut_within), "cut"))  # noqa: S311 - not a secret
    return (event for event in sorted(events, key=lambda event: event[0]) if event[0] <= stop)


class _Sender:
    """Sends the bytes of one image onto one connection: by `sendfile` where they can go as they are."""

    def __init__(
        self,
        transport: asyncio.Transport,
        writer: AbstractStreamWriter,
        image: Image,
        fault: Fault,
        state: State,
        exchange: Exchange,
    ) -> None:
        self._transport = transport
        self._writer = writer
        self._image = image
        self._fault = fault
        self._exchange = exchange
        self._throttles = (state.line, Throttle(lambda: state.connection_rate))
        tls = transport.get_extra_info("sslcontext") is not None
        as_they_are = fault.corrupt_at is None and not fault.chunked and not tls
        self._file = image.open() if as_they_are else None
        self._writer.length = None  # aiohttp would cut off what goes beyond the declared length
        # A drained writer then means that the kernel has everything, so that what we count was really sent. Under TLS,
        # where a limit of 0 would never let it go on, the transport below may still hold a piece.
        transport.set_write_buffer_limits(high=1 if tls else 0)

    async def send(self, start: int, stop: int) -> None:
        """Send this part of the image.

        Raises:
            ConnectionError: the client has left.
        """
        position = start
        while position < stop:
            by_sendfile = self._file is not None and position < self._image.size
            end = min(stop, self._image.size) if by_sendfile else stop
            count = min(end - position, _SENDFILE_PIECE if by_sendfile else _WRITE_PIECE)
            for throttle in self._throttles:
                count = throttle.piece(count)
            await (self._sendfile(position, count) if by_sendfile else self._write(position, count))
            position += count
            for throttle in self._throttles:
                await throttle.spend(count)

    async def _write(self, position: int, count: int) -> None:
        data = self._image.read(position, position + count).ljust(count, b"\0")
        corrupt = -1 if self._fault.corrupt_at is None else self._fault.corrupt_at - position
        if 0 <= corrupt < count:
            data = data[:corrupt] + bytes([data[corrupt] ^ 0xFF]) + data[corrupt + 1 :]
        await self._writer.write(data)
        await self._writer.drain()
        self._exchange.add_sent(count)

    async def _sendfile(self, position: int, count: int) -> None:
        if self._file is None or self._transport.is_closing():
            raise ConnectionResetError
        # The loop leaves the file's offset behind the last byte that the kernel took, also when it fails midway.
        os.lseek(self._file.fileno(), position, os.SEEK_SET)
        try:
            await asyncio.get_running_loop().sendfile(self._transport, self._file, position, count, fallback=False)
        finally:
            self._exchange.add_sent(os.lseek(self._file.fileno(), 0, os.SEEK_CUR) - position)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


async def cut(transport: asyncio.Transport | None, *, reset: bool) -> None:
    """End a connection: with FIN after what was written, or with a reset once the peer's kernel has all of it."""
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    connection: socket.socket = transport.get_extra_info("socket")
    deadline = time.monotonic() + _FLUSH_SECONDS
    while _unacknowledged(connection) and time.monotonic() < deadline:  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(0.001)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


def _unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the kernel still has to deliver; a reset would throw them away."""
    try:
        answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except OSError:  # not every system tells
        return 0
    return int(struct.unpack("i", answer)[0])
