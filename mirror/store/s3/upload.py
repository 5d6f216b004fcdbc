"""Uploads an image to the bucket while it arrives.

Each part becomes an object as soon as its bytes are there, for others to read. The server then copies it into one
multipart upload, which is completed only when all bytes are verified: so the image gets its name only when it is whole.
When the bucket fails, every step is retried; the fill does not wait for that.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping

from mirror.common.log import event
from mirror.model.metadata import ImageMetadata
from mirror.store.s3 import parts
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.byte_range import ReadInto, Span
from mirror.store.s3.capabilities import Capabilities
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.lease import Held, Lease, LeaseLost
from mirror.store.s3.lease_keeper import LeaseKeeper
from mirror.store.s3.objects import ConditionFailed, NotSupported, ObjectGone
from mirror.store.s3.part_table import PartTable
from mirror.store.s3.provenance import WrittenPart
from mirror.store.s3.retries import Retries

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Parts written at a time: each is in memory until it is written."""


LOSSES = 2
"""How often the upload begins again from nothing when its objects were removed by somebody."""


class Upload:
    """The upload of one image; `lease` is None where the server has no leases.

    `read_into` gives bytes up to the position that `advance` was last called with, until their part is `landed`.
    `adopted` are parts that other fills wrote and that we have read whole, by number. `superseded` is called when
    another mirror takes the lease over.
    """

    def __init__(
        self,
        bucket: Bucket,
        metadata: ImageMetadata,
        capabilities: Capabilities,
        read_into: ReadInto,
        lease: Lease | None,
        adopted: Mapping[int, WrittenPart],
        superseded: Callable[[], None],
    ) -> None:
        self._bucket = bucket
        self._metadata = metadata
        self._capabilities = capabilities
        self._read_into = read_into
        self._image = f"images/{metadata.hash}"
        self._retries = Retries(metadata.hash)
        self._table = PartTable(metadata.size, secrets.token_hex(8), adopted)
        self._keeper = None
        if lease is not None:
            self._keeper = LeaseKeeper(lease, metadata.hash, self._table, self._retries, superseded)
        self._upload: str | None = None
        self._beginning = asyncio.Lock()
        self._losses = 0
        self._failed = False
        self._task: asyncio.Task[None] | None = None

    async def take(self, over: Held | None, validator: str | None) -> bool:
        """Take the lease, if there are leases; return False when another mirror was first. Raises BucketFailed."""
        if self._keeper is None:
            return True
        self._keeper.validator = validator
        return await self._keeper.take(over)

    async def withdraw(self) -> None:
        """Remove the lease again: there is nothing to upload. Raises BucketFailed."""
        if self._keeper is not None:
            await self._keeper.remove()

    def start(self) -> None:
        """Begin to upload the bytes that are there, and to keep the lease."""
        if self._keeper is not None:
            self._keeper.start()
        self._task = asyncio.create_task(self._run(), name=f"upload {self._metadata.hash}")

    def advance(self, position: int, validator: str | None) -> None:
        """Note that the bytes up to `position` are there."""
        if self._keeper is not None:
            self._keeper.validator = validator
        self._table.receive(position)

    @property
    def written(self) -> Mapping[int, WrittenPart]:
        """The parts that we wrote, by number."""
        return self._table.written

    def writer(self, number: int) -> str | None:
        """Return the id of the fill that wrote part `number`, if that part is in the bucket."""
        return self._table.writer(number)

    async def landed(self, number: int, seconds: float) -> bool:
        """Wait until part `number` is in the bucket, or for that long; return whether it is."""
        table = self._table
        await table.until(lambda: table.writer(number) is not None or self._ended, seconds)
        return table.writer(number) is not None

    @property
    def trouble(self) -> BucketFailed | None:
        """What keeps it from going on now, or None."""
        return self._retries.trouble

    async def finish(self) -> None:
        """Make the parts the image: all bytes are there and verified. Raises ObjectGone when that cannot be done."""
        if self._task is not None:
            await asyncio.shield(self._task)
        if self._failed:
            raise ObjectGone(f"the upload of {self._metadata.hash} failed")
        await self._retries.until_success(self._complete)
        await self._end(self._clear_away)

    async def abandon(self, failed: str | None = None) -> None:
        """Stop, and let others continue from what is there, unless it `failed`: then it is worthless to them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._end(lambda: self._let_go(failed))

    @property
    def _ended(self) -> bool:
        return self._task is None or self._task.done()

    async def _run(self) -> None:
        try:
            while not self._failed and not await self._upload_all():
                log.debug("the upload of %s begins anew", self._metadata.hash)
        finally:
            self._table.wake()
        if self._failed:
            self._retries.failed("lost", BucketFailed(f"the bucket {self._bucket.name} loses what is written to it"))
            await self._end(self._let_go)

    async def _upload_all(self) -> bool:
        """Bring every part into the multipart upload; return False when something that was there has been removed."""
        slots = asyncio.Semaphore(IN_FLIGHT)
        lost: ExceptionGroup[Exception] | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._table.count):
                    if number not in self._table.adopted:
                        await self._until_whole(number)
                    await slots.acquire()
                    tasks.create_task(self._upload_part(number)).add_done_callback(lambda _: slots.release())
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
        self._upload = None
        self._table.lose_all()
        return False

    async def _until_whole(self, number: int) -> None:
        """Wait until all bytes of a part are there, and write it now and then as it is."""
        table = self._table
        start, stop = table.span(number)
        while table.received < stop:
            before = max(start, table.open_end)
            came = await table.until(lambda: table.received >= stop, self._bucket.timings.flush)
            if not came and table.received > before:
                await self._put(number, start, end := table.received)
                table.grow(end)

    async def _upload_part(self, number: int) -> None:
        if (adopted := self._table.adopted.get(number)) is not None:
            try:
                await self._copy(number, adopted)
            except (ObjectGone, ConditionFailed):
                log.info(
                    "part %d of %s has gone: it is written anew",
                    number,
                    self._metadata.hash,
                    extra=event("upload.repaired", image=self._metadata.hash),
                )
                self._table.lose(number)
            else:
                return
        part = WrittenPart(self._table.fill, await self._put(number, *self._table.span(number)))
        if not self._capabilities.copies:
            await self._copy(number, part)
        self._table.land(number, part.etag)
        if self._capabilities.copies:
            await self._copy(number, part)

    async def _put(self, number: int, start: int, stop: int) -> str:
        name = parts.name(self._metadata.hash, self._table.fill, number)
        return await self._retries.until_success(lambda: self._bucket.put(name, Span(self._read_into, start, stop)))

    async def _copy(self, number: int, part: WrittenPart) -> None:
        self._table.copy(number, await self._retries.until_success(lambda: self._copied(number, part)))

    async def _copied(self, number: int, part: WrittenPart) -> str:
        if self._upload is None:
            async with self._beginning:
                if self._upload is None:
                    self._upload = await self._bucket.begin_upload(self._image)
        if self._capabilities.copies:
            name = parts.name(self._metadata.hash, part.fill, number)
            return await self._bucket.copy_part(self._image, self._upload, number + 1, name, part.etag)
        data = Span(self._read_into, *self._table.span(number))
        return await self._bucket.upload_part(self._image, self._upload, number + 1, data)

    async def _complete(self) -> None:
        assert self._upload is not None  # noqa: S101 - there is a part, and it was copied
        await self._bucket.put(f"{self._image}.json", self._metadata.raw)
        try:
            await self._bucket.complete_upload(self._image, self._upload, self._table.etags)
        except ObjectGone:
            log.debug("the upload of %s has been completed already, or aborted", self._metadata.hash)
        version = await self._bucket.head(self._image)
        if version is None or version.size != self._metadata.size:
            raise ObjectGone(f"the upload of {self._metadata.hash} was removed by somebody")
        self._upload = None

    async def _clear_away(self) -> None:
        """Remove our parts; with the lease, those of dead fills too, since no other fill is at work then."""
        if self._keeper is None or self._keeper.lost:
            await self._remove_parts(f"{self._table.fill}/")
            return
        await self._remove_parts("")
        for unfinished in await self._bucket.uploads(self._image):
            await self._bucket.abort_upload(unfinished.name, unfinished.upload)
        await self._keeper.remove()

    async def _remove_parts(self, whose: str) -> None:
        async for listed in self._bucket.list(f"parts/{self._metadata.hash}/{whose}"):
            await self._bucket.delete(listed.name)

    async def _let_go(self, failed: str | None = None) -> None:
        if self._keeper is None:
            return
        if not self._keeper.lost:
            await self._keeper.release(failed)
        elif await self._bucket.head(self._image) is not None:  # the mirror that took over is done and has tidied up
            await self._remove_parts(f"{self._table.fill}/")

    async def _end(self, tidy: Callable[[], Awaitable[None]]) -> None:
        """Tidy up as far as possible; what stays is removed a day later by `mirror.store.s3.maintenance`."""
        if self._keeper is not None:
            await self._keeper.stop()
        self._task = None  # the tasks keep frames alive, and those keep us and the parts in memory
        try:
            if self._upload is not None:
                upload, self._upload = self._upload, None
                await self._bucket.abort_upload(self._image, upload)
            await tidy()
        except (BucketFailed, LeaseLost) as error:
            log.debug("after the upload of %s something stays behind: %s", self._metadata.hash, error)
