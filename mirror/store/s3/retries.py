"""How an upload deals with a bucket that fails: it tries again until it succeeds, and says once that it has to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mirror.common.log import event
from mirror.store.s3.errors import BucketFailed

PAUSE = (0.5, 10.0)
"""Seconds until what failed is tried again: at first, and at most."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class Retries:
    """The attempts of one image's upload that fail now."""

    def __init__(self, image_hash: str) -> None:
        self._image_hash = image_hash
        self._failing: dict[object, BucketFailed] = {}

    @property
    def trouble(self) -> BucketFailed | None:
        """What keeps the upload from going on now, if anything does."""
        return next(iter(self._failing.values()), None)

    async def until_success(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` until it raises BucketFailed no more."""
        pause, attempts = PAUSE[0], object()
        try:
            while True:
                try:
                    return await work()
                except BucketFailed as error:
                    self.failed(attempts, error)
                await asyncio.sleep(pause)
                pause = min(PAUSE[1], 2 * pause)
        finally:
            self.succeeded(attempts)

    def failed(self, attempts: object, error: BucketFailed) -> None:
        """Note that these attempts fail; the first that do are logged."""
        if not self._failing:
            log.warning(
                "%s cannot be brought into the bucket now: %s",
                self._image_hash,
                error,
                extra=event("upload.paused", image=self._image_hash),
            )
        self._failing[attempts] = error

    def succeeded(self, attempts: object) -> None:
        """Note that these attempts fail no more."""
        self._failing.pop(attempts, None)
