"""One replica's way of bringing an image into the bucket while it arrives.

Each part becomes an object as soon as its bytes are there, for others to read, and is copied by the server into one
multipart upload, which is completed when all bytes are verified: so the image has its name only then, whole. The lease
is renewed meanwhile and says how far we are. When the bucket fails everything is tried again; a fill does not wait.
"""

import asyncio
import functools
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from mirror.common.log import event
from mirror.model.metadata import ImageMetadata
from mirror.store.s3 import parts
from mirror.store.s3.bucket import Bucket, ConditionFailed, NotSupported, ObjectGone
from mirror.store.s3.byte_range import ReadInto, Span
from mirror.store.s3.capabilities import Capabilities
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.lease import LEASE, Held, Lease, LeaseLost, LeaseNote
from mirror.store.s3.lease_holders import Processes

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Parts written at a time: each is in memory meanwhile."""

FLUSH = 5.0
"""Seconds after which a part that a slow line has not filled yet is written as far as it is, for those who follow."""

RENEW = LEASE / 3
"""Seconds between two renewals of a lease when there is nothing new to say."""

PAUSE = (0.5, 10.0)
"""Seconds until what failed is tried again: at first, and at most."""

LOSSES = 2
"""How often all is begun anew when somebody takes away what was brought."""


T = TypeVar("T")


class Upload:
    """The upload of one image; `fill` is its id, `lost` when another replica has taken the lease.

    `read_into` gives bytes up to the position that `advance` was last called with, until their part is `landed`.
    """

    def __init__(
        self,
        bucket: Bucket,
        metadata: ImageMetadata,
        abilities: Capabilities,
        read_into: ReadInto,
        processes: Processes,
    ) -> None:
        self.fill = secrets.token_hex(8)
        self.lost = False
        self.part_size = parts.part_size(metadata.size)
        self._bucket = bucket
        self._metadata = metadata
        self._abilities = abilities
        self._read_into = read_into
        self._image = f"images/{metadata.hash}"
        self._lease = Lease(bucket, metadata.hash, processes) if abilities.conditions else None
        self._adopted: Mapping[int, tuple[str, str]] = {}
        self._validator: str | None = None
        self._position = 0
        self._landed: dict[int, str] = {}
        self._copied: dict[int, str] = {}
        self._open_end = 0
        self._whole_parts = 0
        self._losses = 0
        self._failed = False
        self._failing: dict[object, BucketFailed] = {}
        self._upload: str | None = None
        self._beginning = asyncio.Lock()
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, over: Held | None, adopted: Mapping[int, tuple[str, str]], validator: str | None) -> bool:
        """Take the lease, if there are leases; False when another was first. Raises BucketFailed.

        `adopted` are parts that other fills wrote and we have read whole: by number, that fill's id and the ETag.
        """
        self._adopted, self._validator = dict(adopted), validator
        return self._lease is None or await self._lease.take(self._note(), over)

    async def withdraw(self) -> None:
        """Take the lease away again: there is nothing to bring. Raises BucketFailed."""
        if self._lease is not None:
            await self._lease.remove()

    def begin(self) -> None:
        """Begin to bring what is there, and to keep the lease."""
        self._renewing = asyncio.create_task(self._keep_lease(), name=f"lease {self._metadata.hash}")
        self._task = asyncio.create_task(self._run(), name=f"upload {self._metadata.hash}")

    def advance(self, position: int, validator: str | None) -> None:
        """Say that the bytes up to `position` are there."""
        self._position, self._validator = position, validator
        self._stir()

    @property
    def landed_parts(self) -> Mapping[int, tuple[str, str]]:
        """What we wrote: by number, our id and the ETag."""
        return {number: (self.fill, etag) for number, etag in self._landed.items()}

    def holds(self, number: int) -> str | None:
        """The id of the fill that wrote part `number`, when it is in the bucket."""
        if number in self._adopted:
            return self._adopted[number][0]
        return self.fill if number in self._landed else None

    async def landed(self, number: int, seconds: float) -> bool:
        """Wait until part `number` is in the bucket, or for that long; whether it is."""
        await self._until(lambda: self.holds(number) is not None or self._ended, seconds)
        return self.holds(number) is not None

    async def finish(self) -> None:
        """All bytes are there and verified: make them the image. Raises Gone when that cannot be done."""
        if self._task is not None:
            await asyncio.shield(self._task)
        if self._failed:
            raise ObjectGone(f"the upload of {self._metadata.hash} failed")
        await self._again(self._complete)
        await self._end(self._clear_away)

    async def abandon(self, failed: str | None = None) -> None:
        """Stop, and let others go on from what is there; unless it `failed`: then it is worth nothing to them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._end(lambda: self._let_go(failed))

    @property
    def trouble(self) -> BucketFailed | None:
        """What keeps it from going on now, if anything does."""
        return next(iter(self._failing.values()), None)

    @property
    def _ended(self) -> bool:
        return self._task is None or self._task.done()

    async def _run(self) -> None:
        try:
            while not self._failed and not await self._carry_all():
                log.debug("the upload of %s begins anew", self._metadata.hash)
        finally:
            self._stir()
        if self._failed:
            self._failing["lost"] = BucketFailed(f"the bucket {self._bucket.name} loses what is written to it")
            await self._end(self._let_go)

    async def _carry_all(self) -> bool:
        """Bring every part into the upload; False when something that was there has been taken away."""
        slots = asyncio.Semaphore(IN_FLIGHT)
        lost: ExceptionGroup[Exception] | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(parts.count(self._metadata.size, self.part_size)):
                    if number not in self._adopted:
                        await self._whole(number)
                    await slots.acquire()
                    tasks.create_task(self._carry(number)).add_done_callback(lambda _: slots.release())
        except* (ObjectGone, ConditionFailed, NotSupported, OSError) as group:
            lost = group
        if lost is None:
            return True
        said = "; ".join(str(error) for error in lost.exceptions)
        log.warning(
            "what was brought of %s into the bucket was lost: %s",
            self._metadata.hash,
            said,
            extra=event("upload.lost", image=self._metadata.hash),
        )
        self._failed, self._losses = self._losses == LOSSES, self._losses + 1
        self._upload, self._open_end, self._whole_parts = None, 0, 0
        self._landed, self._copied, self._adopted = {}, {}, {}
        return False

    def _span(self, number: int) -> tuple[int, int]:
        return number * self.part_size, min(self._metadata.size, (number + 1) * self.part_size)

    async def _whole(self, number: int) -> None:
        """Wait until all bytes of a part are there, and write it as it is now and then."""
        start, stop = self._span(number)
        while self._position < stop:
            before = max(start, self._open_end)
            if not await self._until(lambda: self._position >= stop, FLUSH) and self._position > before:
                await self._put(number, start, end := self._position)
                self._open_end = end
                self._stir()

    async def _carry(self, number: int) -> None:
        if number in self._adopted:
            fill, etag = self._adopted[number]
            try:
                self._copied[number] = await self._again(lambda: self._copy(number, fill, etag))
            except (ObjectGone, ConditionFailed):
                log.info(
                    "part %d of %s has gone: it is written anew",
                    number,
                    self._metadata.hash,
                    extra=event("upload.repaired", image=self._metadata.hash),
                )
                self._adopted = {each: by for each, by in self._adopted.items() if each != number}
                self._whole_parts = 0
            else:
                return
        etag = await self._put(number, *self._span(number))
        if not self._abilities.copies:
            self._copied[number] = await self._again(lambda: self._copy(number, self.fill, etag))
        self._landed[number] = etag
        self._stir()
        if self._abilities.copies:
            self._copied[number] = await self._again(lambda: self._copy(number, self.fill, etag))

    async def _put(self, number: int, start: int, stop: int) -> str:
        name = parts.name(self._metadata.hash, self.fill, number)
        return await self._again(lambda: self._bucket.put(name, Span(self._read_into, start, stop)))

    async def _copy(self, number: int, fill: str, etag: str) -> str:
        if self._upload is None:
            async with self._beginning:
                if self._upload is None:
                    self._upload = await self._bucket.begin_upload(self._image)
        if self._abilities.copies:
            part = parts.name(self._metadata.hash, fill, number)
            return await self._bucket.copy_part(self._image, self._upload, number + 1, part, etag)
        data = Span(self._read_into, *self._span(number))
        return await self._bucket.upload_part(self._image, self._upload, number + 1, data)

    async def _keep_lease(self) -> None:
        """Renew the lease in time, and whenever there is something new to say."""
        while self._lease is not None and not self.lost:
            await self._until(functools.partial(self._has_moved, self._reached()), RENEW)
            try:
                await self._lease.renew(self._note())
                self._failing.pop(self._lease, None)
            except LeaseLost:
                log.warning(
                    "another replica fetches %s now: it took the lease over",
                    self._metadata.hash,
                    extra=event("lease.lost", image=self._metadata.hash),
                )
                self.lost = True
                self._stir()
            except BucketFailed as error:
                self._fails(self._lease, error)
                await asyncio.sleep(PAUSE[0])

    def _reached(self) -> int:
        """How far the parts in the bucket go without a gap."""
        while self.holds(self._whole_parts) is not None:
            self._whole_parts += 1
        start, stop = self._span(self._whole_parts)
        return min(self._metadata.size, max(start, self._open_end if start <= self._open_end < stop else 0))

    def _has_moved(self, before: int) -> bool:
        return self._reached() != before

    def _note(self) -> LeaseNote:
        position = self._reached()
        numbers = range(parts.count(position, self.part_size))
        owners = tuple(self._adopted[number][0] if number in self._adopted else self.fill for number in numbers)
        return LeaseNote(self.fill, self.part_size, position, owners, self._validator, size=self._metadata.size)

    async def _complete(self) -> None:
        assert self._upload is not None  # noqa: S101 - there is a part, and it was copied
        await self._bucket.put(f"{self._image}.json", self._metadata.raw)
        etags = [self._copied[number] for number in sorted(self._copied)]
        try:
            await self._bucket.complete_upload(self._image, self._upload, etags)
        except ObjectGone:
            log.debug("the upload of %s has been completed already, or aborted", self._metadata.hash)
        version = await self._bucket.head(self._image)
        if version is None or version.size != self._metadata.size:
            raise ObjectGone(f"the upload of {self._metadata.hash} was removed by somebody")
        self._upload = None

    async def _clear_away(self) -> None:
        """Remove our parts, and with them those of all who died before: who has the lease is the only one alive."""
        alone = self._lease is not None and not self.lost
        await self._remove_parts("" if alone else f"{self.fill}/")
        if self._lease is not None and alone:
            for unfinished in await self._bucket.uploads(self._image):
                await self._bucket.abort_upload(unfinished.name, unfinished.upload)
            await self._lease.remove()

    async def _remove_parts(self, whose: str) -> None:
        async for listed in self._bucket.list(f"parts/{self._metadata.hash}/{whose}"):
            await self._bucket.delete(listed.name)

    async def _let_go(self, failed: str | None = None) -> None:
        if self._lease is not None and not self.lost:
            await self._lease.renew(replace(self._note(), released=True, failed=failed))
        elif self.lost and await self._bucket.head(self._image) is not None:  # who took over is done, and has tidied up
            await self._remove_parts(f"{self.fill}/")

    async def _end(self, tidy: Callable[[], Awaitable[None]]) -> None:
        """Tidy up as far as that is possible; what stays is removed by the keeper when a day has gone by."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        self._task = self._renewing = None  # with them go the frames that hold us, and the parts in memory
        try:
            if self._upload is not None:
                upload, self._upload = self._upload, None
                await self._bucket.abort_upload(self._image, upload)
            await tidy()
        except (BucketFailed, LeaseLost) as error:
            log.debug("after the upload of %s something stays behind: %s", self._metadata.hash, error)

    async def _again(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it until it succeeds."""
        pause, attempts = PAUSE[0], object()
        try:
            while True:
                try:
                    return await work()
                except BucketFailed as error:
                    self._fails(attempts, error)
                await asyncio.sleep(pause)
                pause = min(PAUSE[1], 2 * pause)
        finally:
            self._failing.pop(attempts, None)

    def _fails(self, attempts: object, error: BucketFailed) -> None:
        if not self._failing:
            log.warning(
                "%s cannot be brought into the bucket now: %s",
                self._metadata.hash,
                error,
                extra=event("upload.paused", image=self._metadata.hash),
            )
        self._failing[attempts] = error

    def _stir(self) -> None:
        """Wake all who wait for something to have moved."""
        self._stirred.set()
        self._stirred = asyncio.Event()

    async def _until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until that holds, or for that long; whether it does."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    await self._stirred.wait()
        except TimeoutError:
            return False
        return True
