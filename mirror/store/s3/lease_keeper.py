"""Keeps the lease of an upload: renews it in time, reports how far the parts go, and notices when it is lost."""

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import replace

from mirror.common.log import event
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.lease import Held, Lease, LeaseLost, LeaseNote
from mirror.store.s3.part_table import PartTable
from mirror.store.s3.retries import PAUSE, Retries

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Keeps `lease` for the upload of `table`. `superseded` is called when another mirror has taken the lease over.

    `validator` is upstream's, for the mirror that goes on.
    """

    def __init__(
        self, lease: Lease, image_hash: str, table: PartTable, retries: Retries, superseded: Callable[[], None]
    ) -> None:
        self.lost = False
        self.validator: str | None = None
        self._lease = lease
        self._image_hash = image_hash
        self._table = table
        self._retries = retries
        self._superseded = superseded
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, over: Held | None) -> bool:
        """Take the lease as it was found `over`; return False when another mirror was first. Raises BucketFailed."""
        return await self._lease.take(self._note(), over)

    def start(self) -> None:
        """Begin to renew it."""
        self._renewing = asyncio.create_task(self._renew(), name=f"lease {self._image_hash}")

    async def stop(self) -> None:
        """Stop renewing it."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None

    async def release(self, failed: str | None) -> None:
        """Let another mirror continue from our parts, or say why the fill `failed`. Raises LeaseLost, BucketFailed."""
        await self._lease.renew(replace(self._note(), released=True, failed=failed))

    async def remove(self) -> None:
        """Remove the lease, if we hold it: there is nothing to fetch. Raises BucketFailed."""
        await self._lease.remove()

    async def _renew(self) -> None:
        while not self.lost:
            moved = functools.partial(self._has_moved, self._table.reached())
            await self._table.until(moved, self._lease.timings.renew)
            try:
                await self._lease.renew(self._note())
                self._retries.succeeded(self._lease)
            except LeaseLost:
                log.warning(
                    "another replica fetches %s now: it took the lease over",
                    self._image_hash,
                    extra=event("lease.lost", image=self._image_hash),
                )
                self.lost = True
                self._superseded()
            except BucketFailed as error:
                self._retries.failed(self._lease, error)
                await asyncio.sleep(PAUSE[0])

    def _has_moved(self, before: int) -> bool:
        return self._table.reached() != before

    def _note(self) -> LeaseNote:
        table = self._table
        return LeaseNote(table.fill, table.part_size, table.reached(), table.writers(), self.validator, size=table.size)
