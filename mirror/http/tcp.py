"""What the kernel is told about a client's TCP connection, and what it tells us: silence, loss, and how it ends."""

import asyncio
import socket
import struct

LOOK = 1.0
"""Seconds between two looks at whether a connection is still there."""

QUIET = 10
INTERVAL = 5
PROBES = 3
"""Seconds without a byte after which the kernel probes, seconds between two probes, and how many may be lost.

A client's kernel answers them for a minute after its program has left (tcp_fin_timeout), and then no more.
"""

_CLOSED = 7
"""TCP_CLOSE in the kernel's `enum` of states, the first byte of `struct tcp_info`."""


def bound_unread(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel cut a client off that takes nothing of what was sent for that long."""
    socket_of(transport).setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))


def probe(transport: asyncio.Transport) -> None:
    """Have the kernel find out whether a client that has ended its side waits for its answer, or has left.

    asyncio does not watch such a connection any more, and a client that has left sends nothing. Keepalive is on.
    """
    connection = socket_of(transport)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def is_lost(transport: asyncio.Transport) -> bool:
    """Whether the kernel has learnt that nobody is there: by a reset, or by silence."""
    return int(socket_of(transport).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]) == _CLOSED


def reset(transport: asyncio.Transport | None) -> None:
    """End the connection with a TCP RST: some clients take a body that a plain close cuts short for a whole one."""
    if transport is not None:
        socket_of(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def socket_of(transport: asyncio.Transport) -> socket.socket:
    """The transport's socket, as far as asyncio lets it be used."""
    found: socket.socket = transport.get_extra_info("socket")
    return found
