"""Everything that the mirror uses of aiohttp's server beyond its documented interface.

`tests/unit/test_aiohttp_internals.py` checks each assumption against the aiohttp that is installed.
"""

from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

_TOO_MANY = "Too many headers"
_UNREADABLE = b"\0\r\n\r\n"
"""Bytes that aiohttp's parser refuses in every head."""


class PrivateConnection(web.RequestHandler):
    """A `RequestHandler` that shows what aiohttp knows about a connection.

    Its other assumptions: aiohttp keeps answering on a connection whose `eof_received` returned true, and calls
    `handle_error` to answer what it cannot parse.
    """

    __slots__ = ()

    @property
    def has_more_requests(self) -> bool:
        """Whether further requests have arrived that are not being answered yet."""
        return bool(self._messages)

    @property
    def is_idle(self) -> bool:
        """Whether the connection waits for a request: none is being answered, and none is queued."""
        return not self._messages and self._waiter is not None and not self._waiter.done()

    async def drained(self) -> None:
        """Wait until the transport takes more bytes, which were written to it directly. Raises ConnectionResetError."""
        await self._drain_helper()

    def read_no_more(self) -> None:
        """Make aiohttp call `handle_error` for an unfinished head, and read nothing more from the connection."""
        super().data_received(_UNREADABLE)


class PrivateServer(web.Server):
    """A `Server` that makes connections of another class. They call its `connection_made` and `connection_lost`."""

    def connection(self, kind: type[PrivateConnection], **options: Any) -> PrivateConnection:
        """Make a connection of that class, with the server's options and these."""
        return kind(self, loop=self._loop, **options, **self._kwargs)


def longest(mistake: BaseException | None) -> int | None:
    """Return the limit in bytes that a line of a head exceeded; None for another mistake."""
    return int(mistake.args[1]) if isinstance(mistake, LineTooLong) else None


def has_too_many_fields(mistake: BaseException | None) -> bool:
    """Whether the mistake is that a head has too many fields."""
    return isinstance(mistake, HttpProcessingError) and mistake.message.startswith(_TOO_MANY)
