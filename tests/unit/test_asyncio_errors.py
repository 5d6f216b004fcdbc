"""A client that leaves while the last byte is sent is no error; everything else that asyncio reports is."""

import asyncio
import logging
import socket

import pytest

from mirror.process.asyncio_errors import report


class AbortsWhenResumed(asyncio.Protocol):
    """Finds its connection broken in the moment in which it may write again, as TLS does when a client has gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(0)

    def resume_writing(self) -> None:
        self.transport.abort()


async def test_a_connection_that_asyncio_loses_twice_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(report)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.setblocking(False)
    transport, _ = await loop.create_connection(AbortsWhenResumed, sock=ours)
    transport.write(bytes(1 << 20))
    with theirs:
        async with asyncio.timeout(20):
            while not transport.is_closing():
                await loop.sock_recv(theirs, 1 << 20)
        await asyncio.sleep(0.05)
    assert [record.levelname for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_what_else_goes_wrong_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(report)
    nothing: dict[str, int] = {}
    loop.call_soon(lambda: nothing["nothing"])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "KeyError: 'nothing'" in caplog.text
