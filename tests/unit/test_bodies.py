"""How the body of an answer is received, and what that assumes of the aiohttp and asyncio that are installed."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.upstream.aiohttp_internals import body
from mirror.upstream.body_receiver import BUFFER, Buffers
from tests.support.certificates import certificate

SIZE = 5 * BUFFER + 123
IMAGE = bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256)
HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode()

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def whole(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + IMAGE)


class Upstream:
    """A server that gives each request the next of `answers`; the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await (self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.remove(writer)
            writer.close()


@pytest.fixture(params=["http", "https"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, ssl.SSLContext]:
    if request.param == "http":
        return {}
    cert, key = certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    client = ssl.create_default_context(cafile=str(cert))
    client.check_hostname = False
    return {"server": server, "client": client}


@asynccontextmanager
async def asking(
    upstream: Upstream, line: dict[str, ssl.SSLContext], silence: float | None = None
) -> AsyncIterator[Callable[[], Any]]:
    """Serve, and give a function that asks."""
    server = await asyncio.start_server(upstream, "127.0.0.1", 0, ssl=line.get("server"))
    connector = aiohttp.TCPConnector(ssl=line.get("client", True), keepalive_timeout=1000)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=silence)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout) as session:
        port = server.sockets[0].getsockname()[1]
        yield lambda: session.get(f"{'https' if line else 'http'}://127.0.0.1:{port}/")
    server.close()
    for writer in upstream.writers:
        writer.transport.abort()


async def collect(answer: aiohttp.ClientResponse, into: bytearray) -> list[type]:
    kinds = []
    async for piece in body(answer):
        into += piece
        kinds.append(type(piece))
    return kinds


async def test_a_body_arrives_whole_and_its_connection_is_used_again(line: dict[str, ssl.SSLContext]) -> None:
    upstream = Upstream(whole)
    async with asking(upstream, line) as ask:
        for _ in range(3):
            got = bytearray()
            async with ask() as answer:
                kinds = await collect(answer, got)
            assert got == IMAGE
            assert memoryview in kinds, "aiohttp's reader was used"
    assert upstream.connections == 1


async def test_a_body_that_comes_with_its_headers_arrives_whole(line: dict[str, ssl.SSLContext]) -> None:
    async def little(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async with asking(Upstream(little), line) as ask:
        for _ in range(2):
            async with ask() as answer:
                while not answer.content.is_eof():
                    await asyncio.sleep(0.01)
                got = bytearray()
                await collect(answer, got)
                assert got == b"hello"


async def test_a_body_in_chunks_is_read_by_aiohttp(line: dict[str, ssl.SSLContext]) -> None:
    async def chunked(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, SIZE, BUFFER):
            piece = IMAGE[start : start + BUFFER]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with asking(Upstream(chunked), line) as ask:
        got = bytearray()
        async with ask() as answer:
            assert memoryview not in await collect(answer, got)
        assert got == IMAGE


async def test_a_length_and_chunks_together_are_refused_by_aiohttp(line: dict[str, ssl.SSLContext]) -> None:
    async def both(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")

    async with asking(Upstream(both), line) as ask:
        with pytest.raises(aiohttp.ClientResponseError):
            await ask()


async def test_a_slow_body_is_not_silence(line: dict[str, ssl.SSLContext]) -> None:
    async def slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for start in range(0, SIZE, BUFFER // 2):
            writer.write(IMAGE[start : start + BUFFER // 2])
            await asyncio.sleep(0.2)

    upstream = Upstream(slowly)
    async with asking(upstream, line, silence=1.5) as ask:
        for _ in range(2):
            got = bytearray()
            async with ask() as answer:
                await collect(answer, got)
            assert got == IMAGE
    assert upstream.connections == 1, "aiohttp's own watch for silence ended the connection"


async def test_what_follows_a_body_is_never_part_of_an_answer(line: dict[str, ssl.SSLContext]) -> None:
    async def more(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + IMAGE + b"more")

    upstream = Upstream(more, whole)
    async with asking(upstream, line) as ask:
        got = bytearray()
        async with ask() as answer:
            connection = answer.connection
            assert connection is not None
            transport = connection.transport
            await collect(answer, got)
        assert got == IMAGE
        while not transport.is_closing():
            await asyncio.sleep(0.01)
        got.clear()
        async with ask() as answer:
            await collect(answer, got)
        assert got == IMAGE


@pytest.mark.parametrize("abort", [False, True], ids=["closed", "reset"])
async def test_a_connection_that_ends_too_early_is_an_error_after_all_that_came(
    line: dict[str, ssl.SSLContext], abort: bool
) -> None:
    cut = asyncio.Event()

    async def partly(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + IMAGE[: 2 * BUFFER])
        await cut.wait()
        if abort:
            writer.transport.abort()
        raise ConnectionError

    async with asking(Upstream(partly), line) as ask:
        got = bytearray()
        async with ask() as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                async for piece in body(answer):
                    got += piece
                    if len(got) == 2 * BUFFER:
                        cut.set()
        assert got == IMAGE[: 2 * BUFFER]


async def test_silence_is_an_error_and_a_reader_that_takes_its_time_is_not(line: dict[str, ssl.SSLContext]) -> None:
    async def partly(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + IMAGE[:-1])
        await asyncio.Event().wait()

    async with asking(Upstream(partly), line, silence=0.3) as ask:
        got = bytearray()
        async with ask() as answer:
            with pytest.raises(TimeoutError):
                async for piece in body(answer):
                    if not got:
                        await asyncio.sleep(0.6)
                    got += piece
        assert got == IMAGE[:-1]


async def test_nothing_more_is_read_while_nothing_is_taken(line: dict[str, ssl.SSLContext]) -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            writer.write(IMAGE[:BUFFER])
            await writer.drain()
            sent += BUFFER

    async with asking(Upstream(endless), line) as ask:
        async with ask() as answer:
            pieces = body(answer)
            await anext(pieces)
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.3)
            (receiver,) = (answer.connection.transport.get_protocol(),)
            assert len(receiver._buffers._all) == 1
            for _ in range(100):
                await anext(pieces)
            assert sent > before
            assert len(receiver._buffers._all) <= 3
            await pieces.aclose()


async def test_a_session_that_is_closed_ends_the_body(line: dict[str, ssl.SSLContext]) -> None:
    async def partly(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + IMAGE[:BUFFER])
        await asyncio.Event().wait()

    async with asking(Upstream(partly), line) as ask:
        answer = await ask()
        pieces = body(answer)
        await anext(pieces)
    with pytest.raises(aiohttp.ClientPayloadError):
        async for _ in pieces:
            pass
    answer.close()


def test_a_buffer_is_used_again_only_when_nothing_shows_its_bytes() -> None:
    buffers = Buffers()
    first = buffers.free()
    piece = memoryview(first)[10:20]
    part = piece[2:5]
    second = buffers.free()
    assert second is not first
    del piece
    assert buffers.free() is not first, "a slice of a slice still shows it"
    del part
    given = [buffers.free() for _ in range(3)]
    assert any(buffer is first for buffer in given)
    assert all(len(buffer) == BUFFER for buffer in given)
