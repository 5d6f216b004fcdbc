"""Sets TCP options of a client's connection and reads its state: timeouts, probes, lost connections, the reset."""

import asyncio
import socket
import struct

LOOK = 1.0
"""Seconds between two checks whether a half-closed connection is lost."""

QUIET = 10
"""Seconds without a byte after which the kernel probes whether the other side is still there."""

INTERVAL = 5
"""Seconds between two probes."""

PROBES = 3
"""How many probes may stay unanswered. The kernel of a client whose program has left still answers for a minute
(tcp_fin_timeout)."""

_CLOSED = 7
"""TCP_CLOSE in the kernel's `enum` of states, the first byte of `struct tcp_info`."""


def bound_unread(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel drop a client that acknowledges none of the bytes sent for that many seconds."""
    socket_of(transport).setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))


def probe(transport: asyncio.Transport) -> None:
    """Have the kernel find out whether a client that closed its sending side still waits for its answer.

    asyncio does not watch such a connection any more, and a client that has left sends nothing. aiohttp has switched
    keepalive on.
    """
    connection = socket_of(transport)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def is_lost(transport: asyncio.Transport) -> bool:
    """Whether the kernel knows that the other side is gone, by a reset or by unanswered probes."""
    return int(socket_of(transport).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]) == _CLOSED


def reset(transport: asyncio.Transport | None) -> None:
    """End the connection with a TCP RST. After a plain close some clients take a shortened body for a whole one."""
    if transport is not None:
        socket_of(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def socket_of(transport: asyncio.Transport) -> socket.socket:
    """Return the transport's socket, of which asyncio allows only some uses."""
    found: socket.socket = transport.get_extra_info("socket")
    return found
