"""A client or server that leaves in the wrong moment is no error; everything else that asyncio reports is."""

import asyncio
import gc
import logging
import socket
import sys
from typing import Any

import aiohttp
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


class KeepsConnection(aiohttp.TCPConnector):
    """Lets the test have the connection that a request uses."""

    connection: Any

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        self.connection = await super().connect(*args, **kwargs)
        return self.connection


async def test_a_server_that_leaves_before_a_body_is_sent_is_told_to_the_caller_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(report)
    connector, tracing = KeepsConnection(), aiohttp.TraceConfig()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def lose(*_: object) -> None:
        loop.call_soon(connector.connection.transport.close)  # before the task runs that sends the body

    tracing.on_request_headers_sent.append(lose)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing]) as session:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.put(url, data=b"body", expect100=True)
        gc.collect()
        await asyncio.sleep(0.05)
    if sys.version_info < (3, 12):  # since then it begins at once, when nothing is lost yet
        assert "a request could not be sent" in caplog.text
    assert [record.levelname for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_what_else_goes_wrong_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(report)
    nothing: dict[str, int] = {}
    loop.call_soon(lambda: nothing["nothing"])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "KeyError: 'nothing'" in caplog.text
