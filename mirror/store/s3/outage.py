"""Tracks whether the bucket's server can be reached: while it cannot, no request waits for it.

The server counts as away when it cannot be reached, or when a read gets no answer or is told that the server is
overloaded. A slow write proves nothing: on a thin line it may be slow.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError

from mirror.common.circuit_breaker import Breaker, Question
from mirror.common.log import event
from mirror.store.s3.errors import BucketFailed

_READING = frozenset({"HeadObject", "GetObject", "ListBucket", "ListBucketMultipartUploads"})
_UNREACHABLE = (EndpointConnectionError, ConnectTimeoutError)
_OVERLOADED = frozenset({502, 503, 504})

log = logging.getLogger(__name__)


class Outage:
    """Tracks the server of the bucket `name`.

    `attempt` sends a request, for the object that could not be read, if any. It is made in the background, every
    `spared` seconds, to find out whether a server that is away is back.
    """

    def __init__(self, name: str, attempt: Callable[[str | None], Awaitable[None]], spared: float) -> None:
        self._name = name
        self._attempt = attempt
        self._breaker: Breaker[str] = Breaker(time.monotonic, lambda _: spared)
        self._trying: asyncio.Task[None] | None = None

    @property
    def lasts(self) -> bool:
        """Return whether the server is away, as far as is known."""
        return self._breaker.away is not None

    async def close(self) -> None:
        """Stop trying."""
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)

    def begin(self, operation: str) -> Question:
        """Begin a request, if the server is not away or this is the attempt to find out. Raises BucketFailed."""
        if not self.lasts or asyncio.current_task() is self._trying:
            question = self._breaker.ask(operation)
            if question is not None:
                return question
        raise BucketFailed(self._breaker.away or "")

    def answered(self, question: Question) -> None:
        """Note that the server answered."""
        if self._breaker.answered(question):
            log.info("the bucket %s answers again", self._name, extra=event("bucket.back"))

    def failed(self, question: Question, error: Exception, trouble: BucketFailed, name: str | None) -> None:
        """Note that it raised `error` (`trouble` in words) when it was asked for the object `name`, or for none."""
        reading = question.kind in _READING or question.trial
        if isinstance(error, ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            away = status in _OVERLOADED and reading
            if not away:
                self.answered(question)
        else:
            away = isinstance(error, _UNREACHABLE) or (isinstance(error, TimeoutError) and reading) or question.trial
        if away and self._breaker.failed(question, trouble.message):
            log.warning("%s; nobody waits for it until it answers again", trouble, extra=event("bucket.away"))
            if self._trying is None or self._trying.done():
                self._trying = asyncio.create_task(self._try(name), name=f"try the bucket {self._name}")

    def dropped(self, question: Question) -> None:
        """Note that a request was dropped, so nothing more will be known from it."""
        self._breaker.dropped(question)

    async def _try(self, name: str | None) -> None:
        while self.lasts:
            await asyncio.sleep(self._breaker.wait)
            try:
                await self._attempt(name)
            except BucketFailed as error:
                log.debug("the bucket was tried: %s", error)
