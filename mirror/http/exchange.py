"""One request of a client and its answer: made by the listener, and passed to all that have to do with it."""

import re
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import HttpVersion10, HttpVersion11, web

from mirror.http.connection import HttpConnection, identify, new_id
from mirror.model.cache_status import CacheStatus

_CACHE_STATUS = web.ResponseKey("cache_status", CacheStatus)
LEFT = 499
"""The status of an exchange whose client left before it was answered."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


Response = TypeVar("Response", bound=web.StreamResponse)


def marked(response: Response, status: CacheStatus) -> Response:
    """Say of a response how it was come by; what clients, the log and metrics are told follows from that."""
    response[_CACHE_STATUS] = status
    return response


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and its answer, as far as they have got.

    `id` is the request's id in the log, in the answer and in what upstream is asked for it; `route` is its name in
    metrics. `response` is the answer once it begins or is there; None while there is none, and when the client left
    first. `cache_status` is what the answer says of how it was come by, if it does. `size` is how many bytes of an
    image the answer carries, None when it carries none; `sent` of them are with the kernel: a thread that sends counts
    them.
    """

    request: web.BaseRequest
    connection: HttpConnection
    id: str
    route: str = "other"
    response: web.StreamResponse | None = None
    cache_status: CacheStatus | None = None
    size: int | None = None
    sent: int = 0

    @classmethod
    def of(cls, request: web.BaseRequest) -> "Exchange":
        """Begin one; the request's own id is taken over when it is harmless."""
        assert isinstance(request.protocol, HttpConnection)  # noqa: S101 - the server makes no others
        given = request.headers.get("X-Request-ID", "")
        return cls(request, request.protocol, given if _SANE_ID.fullmatch(given) else new_id())

    @property
    def speaks_http(self) -> bool:
        """Whether the request is of a version of HTTP that is understood here."""
        return self.request.version in {HttpVersion10, HttpVersion11}

    @property
    def status(self) -> int:
        """The status of the answer, or LEFT."""
        return LEFT if self.response is None else self.response.status

    @property
    def is_sent(self) -> bool:
        """Whether all that the answer carries of an image is with the kernel."""
        return self.sent == self.size

    def complete(self, response: web.StreamResponse) -> None:
        """Add what every answer carries to one that is to be sent."""
        self.response = response
        identify(response, self.id)
        self.cache_status = response.get(_CACHE_STATUS)
        if self.cache_status is not None:
            response.headers["Cache-Status"] = self.cache_status.header
        if self.connection.one_too_many or self.connection.has_said_all or self._something_follows():
            response.force_close()

    async def begin(self, response: web.StreamResponse, size: int | None = None) -> None:
        """Send the headers of an answer whose body is sent before it is returned, `size` bytes of an image if any."""
        self.complete(response)
        self.size = size
        await response.prepare(self.request)

    def _something_follows(self) -> bool:
        """Whether what comes next on the connection may be something else than a request.

        A body is of no use here, and a proxy before us that disagrees with us about its end could have its bytes read
        as a request of somebody else's: so such a connection has had its last request.
        """
        request = self.request
        return (
            not self.speaks_http or request.body_exists or request.method == "CONNECT" or "Upgrade" in request.headers
        )
