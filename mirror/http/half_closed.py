"""Connections whose other side says no more: it waits for the answer, or it has left, which looks the same at first.

asyncio does not watch them any more, and nothing comes of itself from who has left. So the kernel is made to ask, and
to answer us.
"""

import asyncio
import socket

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


def probe(transport: asyncio.Transport) -> None:
    """Have the kernel find out soon when nobody is there any more. Keepalive is on already."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def is_lost(transport: asyncio.Transport) -> bool:
    """Whether the kernel has learnt that nobody is there: by a reset, or by silence."""
    return int(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]) == _CLOSED
