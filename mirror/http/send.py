"""Moving an image's bytes to a client as they may be sent.

How they travel (measured, see docs/performance.md): on a plain connection the kernel takes them from the page cache, so
they never enter this process. From the file's mapping that is quickest, but what is mapped counts as resident, by
whole huge pages; so when downloads are many, and each gets only a small slice of what may be in memory, it is
`sendfile`. Over TLS they are read and encrypted. Sending has threads of its own, so that copying gigabytes keeps
neither a fill waiting nor the next request.
"""

import asyncio
import itertools
import logging
import os
import socket
from concurrent.futures import Executor
from contextlib import aclosing

from aiohttp import web

from mirror.common.log import event
from mirror.http import tcp
from mirror.http.exchange import Exchange
from mirror.http.send_threads import LEAST_SLICE, SendThread, SliceMemory
from mirror.images.outcome import FillFailed
from mirror.store.base import BLOCK, Body, Cut
from mirror.store.shared_file import LOOK, SharedFile

log = logging.getLogger(__name__)

TLS_SLICE = 256 << 10
TLS_MEMORY = 2 << 20
"""Bytes of the largest slice over TLS, and of those of all downloads together as long as LEAST_SLICE allows: what is
encrypted exists several times over until it is sent, and the buffers that it was in stay with the connection."""

PIECES_PENDING = 16 << 10
"""Bytes that may wait in memory for a client when the next piece of what is in no file is made."""

STALLED = 600.0
"""Seconds after which a client that takes nothing is cut off by the kernel."""


class Sender:
    """Sends bodies in so many `threads`. `pool` is for reads that wait for the disk."""

    def __init__(self, pool: Executor, threads: int) -> None:
        self._pool = pool
        self._threads = [SendThread(f"send-{number}") for number in range(threads)]
        self._next = itertools.cycle(self._threads)
        self._encrypted = 0

    def close(self) -> None:
        """End the threads; nothing may be under way any more."""
        for thread in self._threads:
            thread.stop()

    async def send(self, exchange: Exchange, response: web.StreamResponse, body: Body, start: int, stop: int) -> None:
        """Send the headers, then the bytes [start, stop) of `body` as they become available.

        When they do not, because the fill failed, the disk does, or the image was taken back, the connection is reset.
        """
        try:
            await exchange.begin(response, stop - start)
            if (transport := exchange.connection.transport) is None:
                return
            tcp.bound_unread(transport, STALLED)
            if transport.get_extra_info("sslcontext") is None:
                await _headers_gone(transport)
                start = await self._send_mapped(exchange, transport, body, start, stop)
            else:
                transport.set_write_buffer_limits(LEAST_SLICE)  # asyncio would keep half a megabyte for each
                start = await self._send_copied(exchange, response, body, start, stop)
            if start < stop:
                await self._send_pieces(exchange, response, body, start, stop)
        except ConnectionError:
            log.debug("the client left after %d bytes", exchange.sent)
        except (FillFailed, Cut) as failure:
            log.warning(
                "request %s: reset after %d bytes: %s",
                exchange.id,
                exchange.sent,
                failure,
                extra=event("http.reset", request=exchange.id),
            )
            tcp.reset(exchange.connection.transport)
        except OSError as error:
            log.error(
                "request %s: reset after %d bytes: %s",
                exchange.id,
                exchange.sent,
                error,
                extra=event("http.reset", request=exchange.id),
            )
            tcp.reset(exchange.connection.transport)

    async def _send_mapped(
        self, exchange: Exchange, transport: asyncio.Transport, body: Body, start: int, stop: int
    ) -> int:
        """Send what is in a file; how far that was."""
        thread = next(self._next)
        position = start
        # A descriptor of its own, because the thread may still hold it when the transport has closed; and the same to
        # the end, so that a download that has begun needs no more of them.
        with tcp.socket_of(transport).dup() as connection:
            while position < stop:
                limit = min(stop, await body.available(position))
                if (file := body.file_at(position)) is None:
                    break
                if transport.is_closing():
                    raise ConnectionResetError
                await thread.run(self._push(exchange, connection, thread.memory, file, position, limit))
                position = limit
        return position

    async def _push(
        self,
        exchange: Exchange,
        connection: socket.socket,
        memory: SliceMemory,
        file: SharedFile,
        start: int,
        stop: int,
    ) -> None:
        """Send the bytes [start, stop), all of which are there. Runs in a thread."""
        loop = asyncio.get_running_loop()
        position = start
        connection.setblocking(False)
        while position < stop:
            with memory.slice(BLOCK - position % BLOCK, stop - position) as size:
                _check(file, surely=position + size == stop)
                if not file.resident(position, position + size):
                    await loop.run_in_executor(self._pool, file.load, position, position + size)
                if size >= BLOCK // 2:
                    with file.window(position, position + size) as window:
                        await _send(exchange, connection, file, window)
                else:
                    await _sendfile(exchange, connection, file, position, size)
            position += size
            await asyncio.sleep(0)  # a client that takes all it gets must not keep the thread

    async def _send_copied(
        self, exchange: Exchange, response: web.StreamResponse, body: Body, start: int, stop: int
    ) -> int:
        """The same over TLS."""
        loop = asyncio.get_running_loop()
        position = start
        self._encrypted += 1
        try:
            while position < stop:
                limit = min(stop, await body.available(position))
                if (file := body.file_at(position)) is None:
                    break
                while position < limit:
                    size = max(LEAST_SLICE, min(TLS_SLICE, TLS_MEMORY // self._encrypted))
                    end = min(limit, position + size)
                    _check(file, surely=end == limit)
                    if file.resident(position, end):
                        piece = file.read(position, end)
                    else:
                        piece = await loop.run_in_executor(self._pool, file.read, position, end)
                    await response.write(piece)
                    position += len(piece)
                    exchange.sent = position - start
        finally:
            self._encrypted -= 1
        return position

    async def _send_pieces(
        self, exchange: Exchange, response: web.StreamResponse, body: Body, start: int, stop: int
    ) -> None:
        """Send what is in no file."""
        if (transport := exchange.connection.transport) is not None:
            transport.set_write_buffer_limits(PIECES_PENDING)
        async with aclosing(body.pieces(start, stop)) as pieces:
            async for piece in pieces:
                await response.write(piece)
                exchange.sent += len(piece)


async def _headers_gone(transport: asyncio.Transport) -> None:
    """Wait until the headers, and before them an earlier response, are in the kernel's hands."""
    while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.001)


# The loop's own ways do not tell how much the kernel has taken when they are cancelled: a client that leaves with its
# last byte would not have got it; and `loop.sock_sendfile` hides an error that comes first.


async def _send(exchange: Exchange, connection: socket.socket, file: SharedFile, window: memoryview) -> None:
    """Send what is in `window` of `file`."""
    while window:
        try:
            sent = connection.send(window)
        except BlockingIOError:
            await _writable(connection, LOOK)
            _check(file)
        else:
            exchange.sent += sent
            window = window[sent:]


async def _sendfile(exchange: Exchange, connection: socket.socket, file: SharedFile, start: int, size: int) -> None:
    """Send `size` bytes of `file` from `start`."""
    stop = start + size
    while start < stop:
        try:
            sent = os.sendfile(connection.fileno(), file.fileno(), start, stop - start)
        except BlockingIOError:
            await _writable(connection, LOOK)
            _check(file)
        else:
            if not sent:
                raise OSError(f"the file ends before byte {stop}")
            exchange.sent += sent
            start += sent


async def _writable(connection: socket.socket, seconds: float) -> None:
    """Wait until the kernel takes more, or for that long."""
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(connection, _wake, writable)
    timer = loop.call_later(seconds, _wake, writable)
    try:
        await writable
    finally:
        timer.cancel()
        loop.remove_writer(connection)


def _check(file: SharedFile, *, surely: bool = False) -> None:
    """Raise Cut when the file's bytes are not to be sent any more."""
    if file.recalled(surely=surely):
        raise Cut("the image was found bad, or removed by force, while it was sent")


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
