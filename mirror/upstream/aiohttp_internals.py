"""Takes bodies from their connections past aiohttp's reader, which hands them on in small pieces.

Everything that the mirror uses of aiohttp's client beyond its documented interface is here.
`tests/unit/test_bodies.py` checks each assumption against the aiohttp that is installed.
"""

from collections.abc import AsyncGenerator

import aiohttp

from mirror.common.tls_buffer import set_tls_read_buffer
from mirror.upstream.body_receiver import BUFFER, BodyReceiver


async def body(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes | memoryview, None]:
    """Yield the bytes of an answer's body, encoded as they are, in pieces of any size.

    A piece may be kept and sliced for as long as it is needed. Raises aiohttp's ClientError, TimeoutError (silence for
    longer than `sock_read`) or OSError.
    """
    early = []
    while piece := answer.content.read_nowait():
        early.append(piece)
    receiver = _take_over(answer)
    for piece in early:
        yield piece
    if receiver is None:
        async for piece in answer.content.iter_any():
            yield piece
    else:
        while taken := await receiver.take():
            yield taken
        _give_back(answer)


def _take_over(answer: aiohttp.ClientResponse) -> BodyReceiver | None:
    """Let a receiver have the rest of the body; None when only aiohttp knows where it ends, or all of it is here."""
    connection = answer.connection
    if connection is None or answer.content_length is None:
        return None
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None:  # the connection has ended, as aiohttp will tell
        return None
    left = answer.content_length - answer.content.total_bytes
    receiver = BodyReceiver(transport, left, protocol.read_timeout, protocol.connection_lost)
    protocol.pause_reading()  # aiohttp must not watch for silence any more
    set_tls_read_buffer(transport, BUFFER)
    transport.set_protocol(receiver)
    transport.resume_reading()
    return receiver


def _give_back(answer: aiohttp.ClientResponse) -> None:
    """Let another request use the connection of a body that was received to its end."""
    connection = answer.connection
    if connection is not None and connection.protocol is not None and connection.transport is not None:
        connection.transport.set_protocol(connection.protocol)
        connection.protocol.set_response_params()  # its parser would take what comes next for more of this body
        answer.content.feed_eof()
