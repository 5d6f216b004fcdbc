"""An image as a response: its headers, the part that was asked for, and its bytes as they may be sent.

How bytes travel (measured, see docs/performance.md): on a plain connection the kernel sends them from the file's
mapping, so they never enter this process; over TLS they are read and encrypted in large pieces. Either way a download
holds one slice in memory, and slices shrink as downloads grow in number.
"""

import asyncio
import logging
import re
import socket
import struct
from base64 import b64encode
from concurrent.futures import Executor
from datetime import UTC
from email.utils import format_datetime
from urllib.parse import quote

from aiohttp import web
from multidict import CIMultiDict

from mirror.fill import FillFailed
from mirror.http.conditional import NotModified, Part, PreconditionFailed, Selection, Unsatisfiable
from mirror.http.errors import message_response
from mirror.metadata import ImageMetadata
from mirror.store.base import Body

log = logging.getLogger(__name__)

SLICE = 2 << 20
LEAST_SLICE = 64 << 10
IN_MEMORY = 16 << 20
"""Bytes of one send, its lower bound, and what all downloads together may have in memory."""

CROWD = 8
"""Downloads at once beyond which each gets small pages to send from."""

TLS_SLICE = 256 << 10
"""Bytes encrypted at once: they exist three times over until they are sent."""

YIELD = 4 << 20
"""Bytes after which a download lets others have the loop, even if its client takes all it gets."""

STALLED = 600_000
"""Milliseconds after which a client that takes nothing is cut off by the kernel (TCP_USER_TIMEOUT)."""


def image_headers(metadata: ImageMetadata, cache_status: str) -> CIMultiDict[str]:
    """What every answer about an image says, 200, 206 and 304 alike, but for its length."""
    return CIMultiDict(
        {
            "ETag": f'"{metadata.hash}"',
            "Last-Modified": format_datetime(metadata.created.astimezone(UTC), usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Content-Disposition": content_disposition(metadata.filename, f"{metadata.hash[:12]}.tar.gz"),
            "Repr-Digest": f"sha-256=:{b64encode(bytes.fromhex(metadata.hash)).decode()}:",
            "Cache-Status": f"pps-mirror; {cache_status}",
            "Cache-Control": "private, no-cache",
            "Vary": "Authorization",
            "X-Content-Type-Options": "nosniff",
        }
    )


def content_disposition(filename: str, otherwise: str) -> str:
    """Offer `filename` for saving (RFC 6266): one path component, no control characters, ASCII with a UTF-8 twin."""
    name = re.split(r"[/\\]", filename)[-1]
    name = "".join(c for c in name if c.isprintable()).strip().lstrip(".")[:200] or otherwise
    plain = re.sub(r"[^ !#-\[\]-~]", "_", name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'


def bodiless(metadata: ImageMetadata, selection: Selection, cache_status: str) -> web.Response | None:
    """The answer to a request that gets no bytes of the image (304, 412, 416); None when it does."""
    if isinstance(selection, NotModified):
        headers = image_headers(metadata, cache_status)
        del headers["Content-Type"], headers["Content-Disposition"]
        return web.Response(status=304, headers=headers)
    if isinstance(selection, PreconditionFailed):
        return message_response(412, "the image here is another version than the one asked for (If-Match)")
    if isinstance(selection, Unsatisfiable):
        response = message_response(416, f"the range begins after the end of the image ({metadata.size} bytes)")
        response.headers["Content-Range"] = f"bytes */{metadata.size}"
        return response
    return None


def bodied(metadata: ImageMetadata, selection: Selection, cache_status: str) -> tuple[web.StreamResponse, int, int]:
    """The 200 or 206 that is to be sent, and the bytes [start, stop) that go with it."""
    response = web.StreamResponse(headers=image_headers(metadata, cache_status))
    start, stop = 0, metadata.size
    if isinstance(selection, Part):
        start, stop = selection.start, selection.stop
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{metadata.size}"
    response.content_length = stop - start
    return response, start, stop


class Sender:
    """Sends bodies, and knows how many are under way. `pool` is for reads that wait for the disk."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self.active = 0

    async def send(
        self, request: web.BaseRequest, response: web.StreamResponse, body: Body, start: int, stop: int
    ) -> None:
        """Send the headers, then the bytes [start, stop) of `body` as they become available.

        When they do not, because the fill failed or the disk does, the connection is reset.
        """
        self.active += 1
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
            self.active -= 1

    async def _send_mapped(
        self, request: web.BaseRequest, transport: asyncio.Transport, body: Body, start: int, stop: int
    ) -> None:
        loop = asyncio.get_running_loop()
        while transport.get_write_buffer_size():  # the headers, and before them an earlier response
            if transport.is_closing():
                return
            await asyncio.sleep(0.001)
        position = start
        with transport.get_extra_info("socket").dup() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED)
            connection.setblocking(False)
            while position < stop:
                limit = min(stop, await body.available(position))
                while position < limit:
                    end = min(limit, position + self._slice(SLICE))
                    with body.file.window(position, end, small=self.active > CROWD) as window:
                        end = position + len(window)
                        if not body.file.resident(position, end):
                            await loop.run_in_executor(self._pool, body.file.load, position, end)
                        await loop.sock_sendall(connection, window)
                    if position // YIELD != end // YIELD:
                        await asyncio.sleep(0)
                    position = end
                    request["sent"] = position - start

    async def _send_copied(
        self, request: web.BaseRequest, response: web.StreamResponse, body: Body, start: int, stop: int
    ) -> None:
        loop = asyncio.get_running_loop()
        position = start
        while position < stop:
            limit = min(stop, await body.available(position))
            while position < limit:
                end = min(limit, position + self._slice(TLS_SLICE))
                piece = await loop.run_in_executor(self._pool, body.file.read, position, end)
                await response.write(piece)
                position += len(piece)
                request["sent"] = position - start

    def _slice(self, most: int) -> int:
        return max(LEAST_SLICE, min(most, IN_MEMORY // self.active))


def reset(request: web.BaseRequest) -> None:
    """End the connection with a TCP RST: some clients take a body that a plain close cuts short for a whole one."""
    if (transport := request.transport) is not None:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
