"""One request and its answer, as one object that the listener makes and passes to everything that handles it."""

import re
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import HttpVersion10, HttpVersion11, web

from mirror.http.connection import HttpConnection, identify, new_id
from mirror.model.cache_status import CacheStatus

_CACHE_STATUS = web.ResponseKey("cache_status", CacheStatus)
LEFT = 499
"""The status that is logged and counted for a client that left before it was answered."""

_SPOKEN = (HttpVersion11, HttpVersion10)

_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


Response = TypeVar("Response", bound=web.StreamResponse)


def marked(response: Response, status: CacheStatus) -> Response:
    """Attach a cache status to a response. The header, the log and the metrics all take it from there."""
    response[_CACHE_STATUS] = status
    return response


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and the state of its answer.

    `id` identifies the request in the log, in the answer and towards upstream; `route` names it in metrics. `response`
    is None until there is one, and in the end when the client left before it. `cache_status` is that of the response,
    if it has one. `size` is how many bytes of an image the answer contains, None when it contains none. `sent` counts
    those that the kernel has; the thread that sends updates it. Of a manifest, config or layer, `digest` is its digest,
    and `kind` says which of the two latter it is.
    """

    request: web.BaseRequest
    connection: HttpConnection
    id: str
    route: str = "other"
    response: web.StreamResponse | None = None
    cache_status: CacheStatus | None = None
    size: int | None = None
    sent: int = 0
    digest: str | None = None
    kind: str | None = None

    @classmethod
    def of(cls, request: web.BaseRequest) -> "Exchange":
        """Begin an exchange. The client's own request id is used when it is harmless."""
        assert isinstance(request.protocol, HttpConnection)  # noqa: S101 - the server makes no others
        given = request.headers.get("X-Request-ID")
        return cls(request, request.protocol, given if given and _SANE_ID.fullmatch(given) else new_id())

    @property
    def speaks_http(self) -> bool:
        """Whether the request is HTTP/1.0 or HTTP/1.1."""
        return self.request.version in _SPOKEN

    @property
    def status(self) -> int:
        """The status of the answer, or LEFT when there is none."""
        return LEFT if self.response is None else self.response.status

    @property
    def is_sent(self) -> bool:
        """Whether the kernel has every byte of the image that the answer contains."""
        return self.sent == self.size

    def complete(self, response: web.StreamResponse) -> None:
        """Add the headers that every answer has, before the response is sent."""
        self.response = response
        identify(response, self.id)
        self.cache_status = response.get(_CACHE_STATUS)
        if self.cache_status is not None:
            response.headers["Cache-Status"] = self.cache_status.header
        if self.connection.one_too_many or self.connection.has_said_all or self._something_follows():
            response.force_close()

    async def begin(self, response: web.StreamResponse, size: int | None = None) -> None:
        """Send the headers of a response whose body the handler sends itself, `size` bytes of an image if any."""
        self.complete(response)
        self.size = size
        await response.prepare(self.request)

    def _something_follows(self) -> bool:
        """Return whether the next bytes on the connection may be something other than a request."""
        request = self.request
        return (
            not self.speaks_http or request.body_exists or request.method == "CONNECT" or "Upgrade" in request.headers
        )
