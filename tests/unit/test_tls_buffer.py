"""What is assumed of the buffer that asyncio reads into over TLS, held against the asyncio that runs this."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from mirror.common.tls_buffer import set_tls_read_buffer
from tests.support.certificates import certificate


@pytest.mark.parametrize("size", [16 << 10, 1 << 20])
async def test_a_tls_connection_has_a_buffer_of_that_size_to_read_into_and_reads_all_the_same(
    tmp_path: Path, size: int
) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
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
        trusting = ssl.create_default_context(cafile=str(cert))
        trusting.check_hostname = False
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
