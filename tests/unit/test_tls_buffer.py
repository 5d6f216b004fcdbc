"""What is assumed of the buffers that asyncio has for TLS, held against the asyncio that runs this."""

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mirror.common.tls_buffer import SMALL, begin_small_tls, let_tls_keep_little, set_tls_read_buffer
from tests.support.certificates import certificate


def contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """One for a server, one for a client that trusts it."""
    cert, key = certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=str(cert))
    trusting.check_hostname = False
    return context, trusting


@pytest.mark.parametrize("size", [16 << 10, 1 << 20])
async def test_a_tls_connection_has_a_buffer_of_that_size_to_read_into_and_reads_all_the_same(
    tmp_path: Path, size: int
) -> None:
    context, trusting = contexts(tmp_path)
    took: list[asyncio.Transport] = []
    received = asyncio.Queue[bytes]()

    class Taker(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            set_tls_read_buffer(transport, size)
            took.append(transport)

        def data_received(self, data: bytes) -> None:
            received.put_nowait(data)

    loop = asyncio.get_running_loop()
    async with await loop.create_server(Taker, "127.0.0.1", 0, ssl=context) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=trusting)
        sent = bytes(range(256)) * 4096
        writer.write(sent)
        got = b""
        while len(got) < len(sent):
            got += await received.get()
        assert got == sent
        protocol: Any = took[0]._ssl_protocol  # type: ignore[attr-defined]
        assert len(protocol._ssl_buffer) == len(protocol.get_buffer(-1)) == size
        writer.close()
        took[0].abort()


async def test_to_one_that_does_not_read_no_more_is_written_than_two_writes_beyond_what_the_kernel_takes(
    tmp_path: Path,
) -> None:
    context, trusting = contexts(tmp_path)
    loop = asyncio.get_running_loop()
    came: asyncio.Future[asyncio.Transport] = loop.create_future()
    piece, count = bytes(32 << 10), 400

    class Giver(asyncio.Protocol):
        def __init__(self) -> None:
            self.open = asyncio.Event()
            self.open.set()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            let_tls_keep_little(transport)
            came.set_result(transport)

        def pause_writing(self) -> None:
            self.open.clear()

        def resume_writing(self) -> None:
            self.open.set()

    giver = Giver()
    async with await loop.create_server(lambda: giver, "127.0.0.1", 0, ssl=context) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=trusting, limit=1)
        transport = await came
        protocol: Any = transport._ssl_protocol  # type: ignore[attr-defined]
        waiting = []

        async def give() -> None:
            for _ in range(count):
                await giver.open.wait()
                transport.write(piece)
                below, pending = protocol._transport.get_write_buffer_size(), protocol._outgoing.pending
                waiting.append(below + pending + sum(map(len, protocol._write_backlog)))

        giving = asyncio.create_task(give())
        await asyncio.sleep(0.2)
        assert not giving.done(), "the kernel took it all"
        for _ in range(count):
            await reader.readexactly(len(piece))
        await giving
        assert 0 < max(waiting) <= 2.1 * len(piece)  # with what TLS adds
        transport.abort()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_server_reads_into_a_small_buffer_from_the_handshake_on(tmp_path: Path) -> None:
    context, trusting = contexts(tmp_path)
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    class Taker(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert transport.get_extra_info("sslcontext") is context
            assert transport.get_extra_info("peername")
            self._tls: Any = transport._ssl_protocol  # type: ignore[attr-defined]

        def data_received(self, data: bytes) -> None:
            came.put_nowait((len(self._tls._ssl_buffer), data))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        client = asyncio.create_task(asyncio.open_connection(*listening.getsockname(), ssl=trusting))
        connection, _ = await loop.sock_accept(listening)
        await begin_small_tls(connection, Taker(), context, 10.0)
        _, writer = await client
        writer.write(b"x" * 100)
        assert await came.get() == (SMALL, b"x" * 100)
        writer.transport.abort()

        began = loop.time()
        with socket.create_connection(listening.getsockname()):  # and says nothing
            connection, _ = await loop.sock_accept(listening)
            with pytest.raises(OSError, match="handshake"):
                await begin_small_tls(connection, Taker(), context, 0.2)
        assert 0.2 <= loop.time() - began < 5
        assert connection.fileno() == -1
