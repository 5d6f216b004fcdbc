"""Records what the simulator was asked and how much it sent: the evidence that tests read."""

import hashlib
import time
from collections import deque
from dataclasses import dataclass, replace

KEPT = 200_000
"""Requests remembered; older ones are forgotten, the counters are not."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request to either listener, control calls excepted.

    `listener` is `api` or `store`; `place` that of a fault, `hop` or `loop` for a redirect in the store, or empty for
    no known route. `authorization` is the fingerprint of that header's value. `status` is None when there was no answer
    (yet), `image` the name of the one it was about. `sent` counts image bytes handed to the kernel. Times are seconds
    of the monotonic clock; `ended` is None while it runs.
    """

    listener: str
    place: str
    method: str
    path: str
    query: str
    range: str | None
    if_range: str | None
    authorization: str | None
    request_id: str | None
    trace: str | None
    accept_encoding: str | None
    cdn_loop: str | None
    started: float
    ended: float | None = None
    status: int | None = None
    image: str | None = None
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the start or the last reset: GETs by place, image bytes sent; `held` is how many answers wait now."""

    metadata_requests: int = 0
    image_requests: int = 0
    store_gets: int = 0
    bytes_sent: int = 0
    held: int = 0


def fingerprint(authorization: str) -> str:
    """SHA-256, in hex, of an `Authorization` header's whole value such as `Bearer abc`."""
    return hashlib.sha256(authorization.encode("utf-8", "surrogateescape")).hexdigest()


class Exchange:
    """A request being answered."""

    def __init__(self, asked: LoggedRequest, log: "RequestLog") -> None:
        self._asked = asked
        self._log = log
        self._ended: float | None = None
        self.sent = 0
        """Bytes of an image that the kernel has taken."""
        self.status: int | None = None
        self.image: str | None = None

    def add_sent(self, count: int) -> None:
        """Count that many more bytes of an image."""
        self.sent += count
        self._log.count_bytes(count)

    def end(self) -> None:
        """Note that the answer is complete, or will never be."""
        self._ended = time.monotonic()

    def snapshot(self) -> LoggedRequest:
        """Return the request as it stands now."""
        return replace(self._asked, status=self.status, image=self.image, sent=self.sent, ended=self._ended)


class RequestLog:
    """All exchanges since the last reset, oldest first, and their counters."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; transfers that are running count on from zero."""
        self._exchanges: deque[Exchange] = deque(maxlen=KEPT)
        self._gets = {"metadata": 0, "image": 0, "store": 0}
        self._bytes_sent = 0

    def begin(self, asked: LoggedRequest) -> Exchange:
        """Write down a request that has just arrived."""
        exchange = Exchange(asked, self)
        self._exchanges.append(exchange)
        if asked.method == "GET" and asked.place in self._gets:
            self._gets[asked.place] += 1
        return exchange

    def count_bytes(self, count: int) -> None:
        """Add to the bytes sent."""
        self._bytes_sent += count

    def snapshot(self) -> list[LoggedRequest]:
        """Return every request as it stands now."""
        return [exchange.snapshot() for exchange in self._exchanges]

    def counters(self, held: int) -> Counters:
        """Return the sums, with how many answers wait for `release`."""
        return Counters(self._gets["metadata"], self._gets["image"], self._gets["store"], self._bytes_sent, held)
