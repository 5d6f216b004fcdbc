"""What the mirror assumes of aiohttp's server beyond its documented interface, held against the one installed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web

from mirror.http.aiohttp_internals import (
    PrivateConnection,
    PrivateServer,
    has_too_many_fields,
    longest,
)
from mirror.http.tcp import reset

LINE, FIELD, FIELDS = 100, 200, 5
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Connection(PrivateConnection):
    """One that remembers what aiohttp asked of it."""

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.options = options
        self.mistakes: list[tuple[int, BaseException | None]] = []
        self.ends: list[bool] = []

    def eof_received(self) -> bool:  # type: ignore[override]  # as the mirror's own
        self.ends.append(self.is_idle)
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        assert request.writer.output_size == 0
        self.mistakes.append((status, exc))
        response = web.Response(status=status, text="a mistake")
        response.force_close()
        return response


class Server(PrivateServer):
    """One connection after another; `handled` has how the last one was as its request was answered."""

    def __init__(self) -> None:
        super().__init__(self.handle, access_log=None, max_line_size=LINE, max_field_size=FIELD, max_headers=FIELDS)
        self.made: list[Connection] = []
        self.lost: list[web.RequestHandler] = []
        self.handled: list[tuple[bool, bool]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    def __call__(self) -> web.RequestHandler:
        connection = self.connection(Connection, keepalive_timeout=7.0)
        assert isinstance(connection, Connection)
        self.made.append(connection)
        return connection

    def connection_made(self, handler: web.RequestHandler, transport: Any) -> None:
        super().connection_made(handler, transport)
        assert transport.get_extra_info("socket") is not None

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.lost.append(handler)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        await self.go_on.wait()
        self.handled.append((connection.is_idle, connection.has_more_requests))
        return web.Response(text="an answer")


class Client:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def hear(self) -> bytes:
        """One whole answer."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await self._reader.readexactly(length)

    async def hear_all(self) -> bytes:
        """All that comes before the end, or before a reset: the server has not read all that was sent."""
        heard = b""
        try:
            while piece := await self._reader.read(1 << 16):
                heard += piece
        except ConnectionResetError:
            heard += bytes(self._reader._buffer)  # type: ignore[attr-defined]
        return heard


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    yield Client(reader, writer)
    writer.close()
    await server.shutdown(0.1)
    listening.close()


async def test_a_server_makes_connections_of_another_class_with_its_options(server: Server, client: Client) -> None:
    client.writer.write(REQUEST)
    assert (await client.hear()).endswith(b"an answer")
    (connection,) = server.made
    assert connection.options["keepalive_timeout"] == 7.0
    assert connection.max_line_size == LINE
    assert connection in server.connections


async def test_a_server_is_told_when_a_connection_is_lost(server: Server, client: Client) -> None:
    client.writer.write(REQUEST)
    await client.hear()
    assert isinstance(client.writer.transport, asyncio.Transport)
    reset(client.writer.transport)
    while not server.lost:
        await asyncio.sleep(0.01)
    assert server.lost == list(server.made)


async def test_a_connection_is_idle_before_and_between_requests_and_not_in_them(server: Server, client: Client) -> None:
    client.writer.write(REQUEST[:10])
    while not server.made or not server.made[0].is_idle:
        await asyncio.sleep(0.01)
    client.writer.write(REQUEST[10:])
    await client.hear()
    assert server.handled == [(False, False)]
    while not server.made[0].is_idle:
        await asyncio.sleep(0.01)


async def test_requests_that_wait_for_their_turn_are_seen(server: Server, client: Client) -> None:
    client.writer.write(REQUEST * 3)
    for _ in range(3):
        await client.hear()
    assert server.handled == [(False, True), (False, True), (False, False)]


async def test_a_connection_whose_other_side_ended_is_kept_and_answered(server: Server, client: Client) -> None:
    server.go_on.clear()
    client.writer.write(REQUEST * 2)
    client.writer.write_eof()
    while not server.made or not server.made[0].ends:
        await asyncio.sleep(0.01)
    assert server.made[0].ends == [False]
    server.go_on.set()
    for _ in range(2):
        assert (await client.hear()).endswith(b"an answer")
    assert server.handled == [(False, True), (False, False)]


async def test_an_endless_head_is_answered_as_a_mistake_and_nothing_more_is_read(
    server: Server, client: Client
) -> None:
    client.writer.write(b"GET / HTTP/1.1\r\nX-A: b\r\n")
    while not server.made or not server.made[0].is_idle:
        await asyncio.sleep(0.01)
    server.made[0].read_no_more()
    client.writer.write(b"\r\n" + REQUEST)
    assert (await client.hear_all()).endswith(b"a mistake")
    assert [status for status, _ in server.made[0].mistakes] == [400]
    assert server.handled == []


@pytest.mark.parametrize(
    ("head", "limit", "many"),
    [
        (b"GET /" + b"x" * LINE + b" HTTP/1.1\r\n\r\n", LINE, False),
        (b"GET / HTTP/1.1\r\nX-A: " + b"x" * FIELD + b"\r\n\r\n", FIELD, False),
        (b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * (FIELDS + 1) + b"\r\n", None, True),
        (b"\x16\x03\x01 hello\r\n\r\n", None, False),
    ],
    ids=["target", "field", "fields", "no HTTP"],
)
async def test_what_is_wrong_with_a_head_is_told_apart(
    server: Server, client: Client, head: bytes, limit: int | None, many: bool
) -> None:
    client.writer.write(head)
    assert (await client.hear_all()).split()[1] == b"400"
    ((status, mistake),) = server.made[0].mistakes
    assert (status, longest(mistake), has_too_many_fields(mistake)) == (400, limit, many)


async def test_whoever_writes_to_the_transport_waits_until_it_takes_more_or_learns_that_it_has_gone(
    server: Server, client: Client
) -> None:
    client.writer.write(REQUEST)
    await client.hear()
    (connection,) = server.made
    await asyncio.wait_for(connection.drained(), 1)
    connection.pause_writing()
    waiting = asyncio.create_task(connection.drained())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    connection.resume_writing()
    await asyncio.wait_for(waiting, 1)

    connection.pause_writing()
    waiting = asyncio.create_task(connection.drained())
    await asyncio.sleep(0)
    assert connection.transport is not None
    connection.transport.abort()
    with suppress(ConnectionResetError):  # it ends, in whatever way
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(ConnectionResetError):
        await connection.drained()
