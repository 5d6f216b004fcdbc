"""Sets how much memory a TLS connection may take. Leans on asyncio's own: tests/unit/test_tls_buffer.py."""

import asyncio
import socket
import ssl
from asyncio import sslproto
from typing import Any

SMALL = 16 << 10
"""Bytes of the buffer into which a server reads over TLS: requests are small, and so are handshakes."""


class _SmallProtocol(sslproto.SSLProtocol):
    max_size = SMALL


async def begin_small_tls(
    connection: socket.socket, protocol: asyncio.BaseProtocol, context: ssl.SSLContext, seconds: float
) -> None:
    """Do a server's handshake, within `seconds`, as `loop.connect_accepted_socket` does with `ssl`. Raises OSError.

    That would take 256 KiB for the buffer to read into, and write to all of them, before anything else can be done
    about it: memory that many handshakes at once leave with the process.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    within: Any = seconds  # typeshed wants an int; asyncio itself passes on what it is given
    tls = _SmallProtocol(loop, protocol, context, done, server_side=True, ssl_handshake_timeout=within)
    transport, _ = await loop.connect_accepted_socket(lambda: tls, connection)
    try:
        await done
    except BaseException:
        transport.abort()
        raise


def set_tls_read_buffer(transport: asyncio.Transport, size: int) -> None:
    """Give a TLS connection a buffer of `size` bytes to read into, in place of asyncio's 256 KiB.

    Nothing happens on a plain connection, or if asyncio should keep the buffer elsewhere.
    """
    protocol: Any = getattr(transport, "_ssl_protocol", None)
    if getattr(protocol, "max_size", size) != size and hasattr(protocol, "_ssl_buffer_view"):
        protocol.max_size = size
        protocol._ssl_buffer = bytearray(size)
        protocol._ssl_buffer_view = memoryview(protocol._ssl_buffer)


def let_tls_keep_little(transport: asyncio.Transport) -> None:
    """Pause whoever writes to a TLS connection as long as anything waits to be sent, in place of up to 576 KiB.

    So there is what one write could not get rid of, and what the next one added. On a plain connection, or if asyncio
    should keep its transport elsewhere, only the limit that asyncio itself offers is set.
    """
    transport.set_write_buffer_limits(high=1, low=0)  # with high=0 it would pause them for ever
    below: Any = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is not None:
        below.set_write_buffer_limits(high=1, low=0)
