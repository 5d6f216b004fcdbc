"""Maintains a bucket in the background: removes leftovers, evicts, and uploads the current image if it is missing.

It runs on every replica. The work is idempotent, so no leader is elected.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mirror.common.log import event
from mirror.common.units import format_size
from mirror.model.errors import MirrorError
from mirror.store.s3.store import S3Store

log = logging.getLogger(__name__)


class Keeper:
    """Maintains `bucket`. `replenish` uploads the current image if only our disk has it."""

    def __init__(self, bucket: S3Store, replenish: Callable[[], Awaitable[None]]) -> None:
        self._bucket = bucket
        self._replenish = replenish

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Maintain the bucket while the context lasts."""
        keeping = asyncio.create_task(self._run(), name="keep the bucket")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _run(self) -> None:
        timings = self._bucket.bucket.timings
        pause = timings.first_round
        while True:
            await asyncio.sleep(pause * random.uniform(1.0, 1.5))  # noqa: S311 - not a secret
            pause = timings.round
            try:
                for removal in await self._bucket.clear_away(dry_run=False):
                    freed = format_size(removal.size)
                    log.info(
                        "removed %s %s of the bucket (%s): %s",
                        removal.kind,
                        removal.path,
                        freed,
                        removal.reason,
                        extra=event(f"{removal.kind}.removed"),
                    )
                await self._bucket.evict(dry_run=False)
                await self._replenish()
            except MirrorError as error:
                log.debug("keeping the bucket pauses: %s", error)
            except Exception:
                log.exception("keeping the bucket pauses", extra=event("mirror.mistake"))
