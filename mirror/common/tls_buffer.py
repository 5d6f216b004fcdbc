"""Sets how much is read at a time from a TLS connection. Leans on asyncio's own: tests/unit/test_tls_buffer.py."""

import asyncio
from typing import Any


def set_tls_read_buffer(transport: asyncio.Transport, size: int) -> None:
    """Give a TLS connection a buffer of `size` bytes to read into, in place of asyncio's 256 KiB.

    Nothing happens on a plain connection, or if asyncio should keep the buffer elsewhere.
    """
    protocol: Any = getattr(transport, "_ssl_protocol", None)
    if getattr(protocol, "max_size", size) != size and hasattr(protocol, "_ssl_buffer_view"):
        protocol.max_size = size
        protocol._ssl_buffer = bytearray(size)
        protocol._ssl_buffer_view = memoryview(protocol._ssl_buffer)
