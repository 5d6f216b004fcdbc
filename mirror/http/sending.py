"""Moving an image's bytes to a client as they may be sent.

How they travel (measured, see docs/performance.md): on a plain connection the kernel sends them from the file's
mapping, so they never enter this process; over TLS they are read and encrypted in large pieces. A download holds one
slice in memory, and slices shrink as downloads grow in number. Sending has threads of its own, so that copying
gigabytes keeps neither a fill waiting nor the next request.
"""

import asyncio
import itertools
import logging
import socket
import struct
import threading
from collections.abc import Coroutine
from concurrent.futures import Executor

from aiohttp import web

from mirror.fill import FillFailed
from mirror.store.base import Body
from mirror.store.shared_file import SharedFile

log = logging.getLogger(__name__)

SLICE = 2 << 20
LEAST_SLICE = 64 << 10
IN_MEMORY = 16 << 20
"""Bytes of one send, its lower bound, and what all downloads together may have in memory."""

CROWD = 8
"""Downloads at once beyond which each gets small pages to send from."""

TLS_SLICE = 1 << 20
"""Bytes encrypted at once, at most; they exist three times over until they are sent."""

STALLED = 600_000
"""Milliseconds after which a client that takes nothing is cut off by the kernel (TCP_USER_TIMEOUT)."""


class Sender:
    """Sends bodies in `lanes` threads. `pool` is for reads that wait for the disk."""

    def __init__(self, pool: Executor, lanes: int) -> None:
        self._pool = pool
        self._lanes = [_Lane(f"send-{number}") for number in range(lanes)]
        self._next_lane = itertools.cycle(self._lanes)
        self._active = 0

    def close(self) -> None:
        """End the threads; nothing may be under way any more."""
        for lane in self._lanes:
            lane.stop()

    async def send(
        self, request: web.BaseRequest, response: web.StreamResponse, body: Body, start: int, stop: int
    ) -> None:
        """Send the headers, then the bytes [start, stop) of `body` as they become available.

        When they do not, because the fill failed or the disk does, the connection is reset.
        """
        self._active += 1
        request["sent"] = 0
        try:
            await response.prepare(request)
            if request.transport is None:
                return
            if request.transport.get_extra_info("sslcontext") is None:
                await self._send_mapped(request, request.transport, body, start, stop)
            else:
                await self._send_copied(request, response, body, start, stop)
        except ConnectionError:
            log.debug("the client left at byte %d", start + request["sent"])
        except FillFailed as failure:
            log.warning("request %s: reset at byte %d: %s", request["id"], start + request["sent"], failure)
            reset(request)
        except OSError as error:
            log.error("request %s: reset at byte %d: %s", request["id"], start + request["sent"], error)
            reset(request)
        finally:
            self._active -= 1

    async def _send_mapped(
        self, request: web.BaseRequest, transport: asyncio.Transport, body: Body, start: int, stop: int
    ) -> None:
        while transport.get_write_buffer_size():  # the headers, and before them an earlier response
            if transport.is_closing():
                return
            await asyncio.sleep(0.001)
        lane = next(self._next_lane)
        position = start
        while position < stop:
            limit = min(stop, await body.available(position))
            if transport.is_closing():
                return
            # A descriptor of its own, because the lane may still hold it when the transport has closed.
            connection = transport.get_extra_info("socket").dup()
            await lane.run(self._push(request, connection, body.file, position, limit))
            position = limit

    async def _push(
        self, request: web.BaseRequest, connection: socket.socket, file: SharedFile, start: int, stop: int
    ) -> None:
        """Send the bytes [start, stop), all of which are there, and close `connection`. Runs in a lane."""
        loop = asyncio.get_running_loop()
        position = start
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED)
            connection.setblocking(False)
            while position < stop:
                end = min(stop, position + self._slice(SLICE))
                with file.window(position, end, small=self._active > CROWD) as window:
                    end = position + len(window)
                    if not file.resident(position, end):
                        await loop.run_in_executor(self._pool, file.load, position, end)
                    await loop.sock_sendall(connection, window)
                request["sent"] += end - position
                position = end
                await asyncio.sleep(0)  # a client that takes all it gets must not keep the lane

    async def _send_copied(
        self, request: web.BaseRequest, response: web.StreamResponse, body: Body, start: int, stop: int
    ) -> None:
        loop = asyncio.get_running_loop()
        position = start
        while position < stop:
            limit = min(stop, await body.available(position))
            while position < limit:
                end = min(limit, position + self._slice(TLS_SLICE))
                if body.file.resident(position, end):
                    piece = body.file.read(position, end)
                else:
                    piece = await loop.run_in_executor(self._pool, body.file.read, position, end)
                await response.write(piece)
                position += len(piece)
                request["sent"] = position - start

    def _slice(self, most: int) -> int:
        return max(LEAST_SLICE, min(most, IN_MEMORY // max(1, self._active)))


class _Lane:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in the lane and wait for its end; cancelled, it is cancelled there too."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def reset(request: web.BaseRequest) -> None:
    """End the connection with a TCP RST: some clients take a body that a plain close cuts short for a whole one."""
    if (transport := request.transport) is not None:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
