"""Sends an image's bytes to a client as they become available.

On a plain connection the kernel takes the bytes from the page cache (`sendfile`), so that they never enter this
process. Over TLS they are read and encrypted. Sending has its own threads, so that copying gigabytes delays neither a
fill nor the next request. docs/performance.md has the measurements.
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
from mirror.common.tls_buffer import let_tls_keep_little
from mirror.http import tcp
from mirror.http.exchange import Exchange
from mirror.http.read_ahead import ReadAhead, piece_size
from mirror.http.send_threads import SendThread
from mirror.images.fill_outcome import FillFailed
from mirror.store.base import Body, Cut, Readable, check_good
from mirror.store.shared_file import LOOK, SharedFile

log = logging.getLogger(__name__)

SLICE = 2 << 20
"""The most bytes that one download sends before other downloads in its thread get their turn."""

TLS_SLICE = 256 << 10
"""Bytes of the largest slice over TLS."""

LEAST_TLS_SLICE = 32 << 10
TLS_MEMORY = 2 << 20
"""Bytes of the smallest slice over TLS, and of the slices of all downloads together as long as that allows: encrypted
bytes exist several times over until they are sent, and the connection keeps the buffers that they were in."""

PIECES_PENDING = 16 << 10
"""Bytes that may wait in memory for one client before the next piece is read, for images that are in no file."""

STALLED = 600.0
"""Seconds after which the kernel drops a client that reads nothing."""


class Sender:
    """Sends bodies in that many `threads`. `pool` runs reads that wait for the disk."""

    def __init__(self, pool: Executor, threads: int) -> None:
        self._pool = pool
        self._threads = [SendThread(f"send-{number}") for number in range(threads)]
        self._next = itertools.cycle(self._threads)
        self._encrypted = self._readable = 0
        """How many downloads go over TLS, and of how many the bytes are made by threads."""

    def close(self) -> None:
        """End the threads. Nothing may be being sent any more."""
        for thread in self._threads:
            thread.stop()

    async def send(self, exchange: Exchange, response: web.StreamResponse, body: Body, start: int, stop: int) -> None:
        """Send the headers, then the bytes [start, stop) of `body` as they become available.

        The connection is reset when the fill or the disk fails, or when the image is found bad or removed by force.
        """
        try:
            await exchange.begin(response, stop - start)
            if (transport := exchange.connection.transport) is None:
                return
            tcp.bound_unread(transport, STALLED)
            if transport.get_extra_info("sslcontext") is None:
                await _headers_gone(transport)
                if isinstance(body, Readable):
                    await self._send_readable(exchange, transport, body, start, stop)
                    return
                start = await self._send_file(exchange, transport, body, start, stop)
            else:
                let_tls_keep_little(transport)
                start = await self._send_copied(exchange, transport, body, start, stop)
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

    async def _send_file(
        self, exchange: Exchange, transport: asyncio.Transport, body: Body, start: int, stop: int
    ) -> int:
        """Send the bytes that are in a file. Returns the position after the last one."""
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
                await thread.run(self._push(exchange, connection, file, position, limit))
                position = limit
        return position

    async def _push(
        self, exchange: Exchange, connection: socket.socket, file: SharedFile, start: int, stop: int
    ) -> None:
        """Send the bytes [start, stop), which are all available. Runs in a sending thread."""
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        for position in range(start, stop, SLICE):
            end = min(stop, position + SLICE)
            check_good(file, surely=end == stop)
            if not file.resident(position, end):
                await loop.run_in_executor(self._pool, file.load, position, end)
            await _sendfile(exchange, connection, file, position, end)
            await asyncio.sleep(0)  # a client that takes everything at once must not monopolise the thread

    async def _send_readable(
        self, exchange: Exchange, transport: asyncio.Transport, body: Readable, start: int, stop: int
    ) -> None:
        """Send bytes that threads make."""
        self._readable += 1
        try:
            with tcp.socket_of(transport).dup() as connection:
                size = piece_size(self._readable, stop - start)
                await next(self._next).run(_send_made(exchange, connection, body, start, stop, size))
        finally:
            self._readable -= 1

    async def _send_copied(
        self, exchange: Exchange, transport: asyncio.Transport, body: Body, start: int, stop: int
    ) -> int:
        """Send the bytes that are in a file over TLS. Returns the position after the last one."""
        loop = asyncio.get_running_loop()
        position = start
        self._encrypted += 1
        try:
            while position < stop:
                limit = min(stop, await body.available(position))
                if (file := body.file_at(position)) is None:
                    break
                while position < limit:
                    size = max(LEAST_TLS_SLICE, min(TLS_SLICE, TLS_MEMORY // self._encrypted))
                    end = min(limit, position + size)
                    check_good(file, surely=end == limit)
                    if file.resident(position, end):
                        piece = file.read(position, end)
                    else:
                        piece = await loop.run_in_executor(self._pool, file.read, position, end)
                    if transport.is_closing():
                        raise ConnectionResetError
                    transport.write(piece)
                    position += len(piece)
                    exchange.sent = position - start
                    del piece  # while this client is waited for
                    await asyncio.sleep(0)  # one that takes everything at once must not monopolise the loop
                    await exchange.connection.drained()
        finally:
            self._encrypted -= 1
        return position

    async def _send_pieces(
        self, exchange: Exchange, response: web.StreamResponse, body: Body, start: int, stop: int
    ) -> None:
        """Send bytes that are in no file."""
        if (transport := exchange.connection.transport) is not None:
            transport.set_write_buffer_limits(PIECES_PENDING)
        async with aclosing(body.pieces(start, stop)) as pieces:
            async for piece in pieces:
                await response.write(piece)
                exchange.sent += len(piece)


async def _send_made(
    exchange: Exchange, connection: socket.socket, body: Readable, start: int, stop: int, size: int
) -> None:
    """Send what threads make in pieces of `size` bytes, while they make the next one. Runs in a sending thread."""
    connection.setblocking(False)
    reader = body.reader(start, stop)
    async with ReadAhead(reader, body.executor, size) as ahead:
        while piece := await ahead.next():
            while piece:
                try:
                    sent = connection.send(piece)
                except BlockingIOError:
                    await _writable(connection, LOOK)
                    reader.check()
                else:
                    exchange.sent += sent
                    piece = piece[sent:]


async def _headers_gone(transport: asyncio.Transport) -> None:
    """Wait until the kernel has the headers, and any earlier response before them."""
    while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.001)


async def _sendfile(exchange: Exchange, connection: socket.socket, file: SharedFile, start: int, stop: int) -> None:
    """Send the bytes [start, stop) of `file`, and count those that the kernel took.

    `loop.sock_sendfile` does not tell how much that was when it is cancelled: then a client that leaves right after its
    last byte would count as one that did not get it. And it hides an early error.
    """
    while start < stop:
        try:
            sent = os.sendfile(connection.fileno(), file.fileno(), start, stop - start)
        except BlockingIOError:
            await _writable(connection, LOOK)
            check_good(file)
        else:
            if not sent:
                raise OSError(f"the file ends before byte {stop}")
            exchange.sent += sent
            start += sent


async def _writable(connection: socket.socket, seconds: float) -> None:
    """Wait until the kernel takes more bytes, or for that many seconds."""
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(connection, _wake, writable)
    timer = loop.call_later(seconds, _wake, writable)
    try:
        await writable
    finally:
        timer.cancel()
        loop.remove_writer(connection)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
