"""Retries what an upload does with a failing bucket until it succeeds, and logs once that it has to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mirror.common.log import event
from mirror.store.s3.errors import BucketFailed

PAUSE = (0.5, 10.0)
"""Seconds before a retry: the first, and the longest."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class Retries:
    """The attempts of one image's upload that are failing now."""

    def __init__(self, image_hash: str) -> None:
        self._image_hash = image_hash
        self._failing: dict[object, BucketFailed] = {}

    @property
    def trouble(self) -> BucketFailed | None:
        """What keeps the upload from going on now, or None."""
        return next(iter(self._failing.values()), None)

    async def until_success(self, work: Callable[[], Awaitable[T]]) -> T:
        """Repeat `work` until it no longer raises BucketFailed."""
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
        """Note that these attempts fail; only the first failure is logged."""
        if not self._failing:
            log.warning(
                "%s cannot be brought into the bucket now: %s",
                self._image_hash,
                error,
                extra=event("upload.paused", image=self._image_hash),
            )
        self._failing[attempts] = error

    def succeeded(self, attempts: object) -> None:
        """Note that these attempts no longer fail."""
        self._failing.pop(attempts, None)
