"""Coordinates one fill with the shared bucket: which mirror fetches, where bytes are read from, what is uploaded.

It is always in one of the states of `mirror.store.s3.bucket_state`, and only `Coordinator._enter` changes the state.
The fill's source (`mirror.store.s3.source`) opens what `choose` returns; the fill's journal reports how it grows and
how it ends.
"""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from mirror.common.log import event
from mirror.common.tasks import BackgroundTasks
from mirror.model.metadata import ImageMetadata
from mirror.model.source import Changed
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.bucket_state import NEXT, NOT_FROM_THE_OBJECT, UPLOADING, BucketState
from mirror.store.s3.capabilities import KnownCapabilities
from mirror.store.s3.errors import BucketFailed, NoRoom
from mirror.store.s3.lease import Held, Lease, LeaseNote
from mirror.store.s3.live_processes import Processes
from mirror.store.s3.objects import ObjectGone, Version
from mirror.store.s3.provenance import Provenance, WrittenPart
from mirror.store.s3.upload import Upload
from mirror.store.s3.verified_versions import Versions

log = logging.getLogger(__name__)


class Readable(Protocol):
    """A journal, as far as an upload needs it."""

    @property
    def position(self) -> int:
        """See `mirror.store.base.Partial`."""

    @property
    def validator(self) -> str | None:
        """See `mirror.store.base.Partial`."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read bytes that are there, and return how many. Raises OSError when they are not there any more."""


@dataclass(frozen=True, slots=True)
class SharedBucket:
    """What all fills of a process share of one bucket.

    `reserve` makes room for an image; raises NoRoom, BucketFailed.
    """

    bucket: Bucket
    versions: Versions
    capabilities: KnownCapabilities
    processes: Processes
    background: BackgroundTasks
    reserve: Callable[[ImageMetadata], Awaitable[None]]


class Coordinator:
    """Coordinates one fill with the bucket. Without a `journal` the fill uploads nothing.

    `provenance` records what the fill read in the bucket. The bucket is `needed` when the bytes have no other place to
    go.
    """

    def __init__(
        self, shared: SharedBucket, metadata: ImageMetadata, journal: Readable | None, *, needed: bool = False
    ) -> None:
        self.state = BucketState.CHOOSING
        self.metadata = metadata
        self.bucket = shared.bucket
        self.provenance = Provenance()
        self._shared = shared
        self._journal = journal
        self._needed = needed
        self._lease = Lease(shared.bucket, metadata.hash, shared.processes)
        self._upload: Upload | None = None
        self._vanished: LeaseNote | None = None
        self._look_at = 0.0

    def _enter(self, state: BucketState, upload: Upload | None = None) -> Upload | None:
        """Change the state; nothing else does. `upload` begins with it; return the upload that has to be abandoned."""
        if state not in NEXT[self.state]:
            raise AssertionError(f"a fill that is {self.state} cannot be {state}")
        if state is not self.state:
            log.debug("%s and the bucket: %s -> %s", self.metadata.hash, self.state, state)
        self.state = state
        if state in NOT_FROM_THE_OBJECT:
            self.provenance = self.provenance.from_elsewhere()
        if state in UPLOADING:
            self._upload = upload or self._upload
            return None
        ended, self._upload = self._upload, None
        if ended is not None:  # other mirrors, and our own readers, may still use what it wrote
            self.provenance = self.provenance.with_whole(ended.written)
        return ended

    # What the source calls

    async def choose(self, offset: int) -> Version | LeaseNote | None:
        """Return what to read from `offset` on: the image's object, another fill's parts, or None for upstream.

        Waits while another mirror that fetches has not got beyond `offset`. Raises BucketFailed, Changed.
        """
        if self.state is BucketState.FETCHING:
            return None
        await self._abandon(self._enter(BucketState.CHOOSING))
        while self.state is BucketState.CHOOSING:
            if version := await self._stored():
                self._enter(BucketState.READING)
                self.provenance = self.provenance.from_object(offset, version)
                return version
            if not (await self._shared.capabilities.get()).conditions:
                if self._journal is None or not await self._take(None, BucketState.FETCHING):
                    self._enter(BucketState.ALONE)
                return None
            held = await self._lease.look()
            if note := self._ahead(held, offset):
                # This also holds when the holder will not come back: its parts are read first, then a mirror takes
                # over.
                self._enter(BucketState.FOLLOWING)
                return note
            if held is not None and not held.free:
                await asyncio.sleep(self.bucket.timings.follow)
            elif self._journal is None:
                self._enter(BucketState.ALONE)
            elif await self._take(held, BucketState.FETCHING):
                log.info(
                    "%s is fetched here for all replicas, from byte %d",
                    self.metadata.hash,
                    offset,
                    extra=event("lease.taken", image=self.metadata.hash),
                )
        return None

    def bucket_failed(self, error: BucketFailed, offset: int) -> None:
        """Go on with upstream although the bucket cannot be reached. Raises OSError if then nothing could be stored."""
        if isinstance(error, NoRoom):  # this has been logged already
            log.debug("%s is not brought into the bucket: %s", self.metadata.hash, error)
            self._enter(BucketState.ALONE)
            return
        if error.code is not None:
            self._shared.capabilities.doubt()
        carries = self._journal is not None
        if self._needed and carries and offset == 0:
            raise OSError(errno.EIO, str(error)) from error
        log.log(
            # without a journal, the failure of the store has been logged already
            logging.WARNING if carries else logging.DEBUG,
            "%s is fetched without regard to other replicas: %s",
            self.metadata.hash,
            error,
            extra=event("lease.skipped", image=self.metadata.hash),
        )
        self._look_at = asyncio.get_running_loop().time() + self.bucket.timings.cut_off
        self._enter(BucketState.CUT_OFF)

    async def upstream_is_outdated(self) -> bool:
        """Return whether to stop reading upstream and choose again: another mirror fetches or the bucket is back."""
        if self.state is BucketState.CUT_OFF and (now := asyncio.get_running_loop().time()) >= self._look_at:
            self._look_at = now + self.bucket.timings.cut_off
            with suppress(BucketFailed):
                await self._lease.look()
                return True  # so that not every mirror fetches the rest by itself
        return self.state is BucketState.SUPERSEDED

    async def follow(self) -> LeaseNote | None:
        """Wait a little, and return what the lease's holder says then; None when the lease is no longer held."""
        await asyncio.sleep(self.bucket.timings.follow)
        held = await self._lease.look()
        return held.note if held is not None and not held.free else None

    def parts_vanished(self, note: LeaseNote) -> None:
        """Note that the parts which this note names are gone: its holder is done."""
        self._vanished = note

    def reads_part(self, number: int, fill: str) -> None:
        """Note which fill wrote the part that is read."""
        self.provenance = self.provenance.from_part(number, fill)

    def has_read_whole(self, number: int, part: WrittenPart) -> None:
        """Note that our digest has gone over all of part `number`."""
        self.provenance = self.provenance.with_whole({number: part})

    # What the journal reports and asks

    def moved(self) -> None:
        """Note that the journal has grown."""
        if self._upload is not None and self._journal is not None:
            self._upload.advance(self._journal.position, self._journal.validator)

    async def landed(self, number: int, seconds: float) -> bool:
        """Wait until the bucket has part `number`, or for that long; return whether the journal may drop the part."""
        return self._upload is None or await self._upload.landed(number, seconds)

    def writer(self, number: int) -> str | None:
        """Return the id of the fill that wrote part `number`, if that part is in the bucket."""
        uploaded_by = self._upload.writer(number) if self._upload is not None else None
        return uploaded_by or self.provenance.writer(number)

    def right(self) -> None:
        """Note that all is verified and stored. The image's object is right too, if all bytes came from there."""
        if self.provenance.version is not None:
            self._shared.versions.trust(self.metadata.hash, self.provenance.version)

    def settle(self) -> asyncio.Task[bool]:
        """Make sure that the verified image gets its name in the bucket, whatever becomes of the fill.

        The mirror that has the lease names it; if none has it, this one does. The result is whether it has its name.
        """
        superseded = self._enter(BucketState.NAMING if self.state is BucketState.FETCHING else BucketState.SETTLING)
        return self._shared.background.start(self._settle(superseded), f"settle {self.metadata.hash}")

    async def wrong(self) -> None:
        """Note that the bytes were not the image, and stop the upload."""
        if self.provenance.version is not None:
            log.error(
                "%s in the bucket is not that image: it is not used",
                self.metadata.hash,
                extra=event("bucket.bad", image=self.metadata.hash),
            )
            self._shared.versions.distrust(self.metadata.hash, self.provenance.version)
        await self._abandon(self._enter(BucketState.DONE), "its bytes were wrong")

    async def close(self) -> None:
        """Note that the journal is closed: the fill has ended, or goes on without the bucket."""
        self.provenance = self.provenance.from_elsewhere()
        if self.state not in {BucketState.SETTLING, BucketState.NAMING}:
            await self._end()

    # What the store asks

    @property
    def reading(self) -> bool:
        """Return whether it reads the image's object."""
        return self.provenance.version is not None

    @property
    def trouble(self) -> BucketFailed | None:
        """Return what keeps its upload from going on now, or None."""
        return self._upload.trouble if self._upload is not None else None

    # Internals

    async def _stored(self) -> Version | None:
        return await self._shared.versions.usable(self.bucket, self.metadata)

    def _ahead(self, held: Held | None, offset: int) -> LeaseNote | None:
        """Return what the lease's holder says, if it has parts beyond `offset`. Raises Changed if ours are wrong."""
        if held is None or (note := held.note) is None:
            return None
        if note.failed is not None:
            if self.provenance.includes(note.fill):
                raise Changed(f"another replica found that {note.failed}", ours_is_wrong=True)
            return None
        return note if note.position > offset and note != self._vanished else None

    async def _take(self, held: Held | None, state: BucketState) -> bool:
        """Take the lease and begin to upload; return False when another mirror was first.

        Raises NoRoom, BucketFailed.
        """
        assert self._journal is not None  # noqa: S101 - callers have looked
        capabilities = await self._shared.capabilities.get()
        lease = Lease(self.bucket, self.metadata.hash, self._shared.processes) if capabilities.conditions else None
        adopted = self.provenance.whole
        upload = Upload(self.bucket, self.metadata, capabilities, self._read_into, lease, adopted, self._superseded)
        validator = self._journal.validator or (held.note.validator if held and held.note else None)
        if not await upload.take(held, validator):
            return False
        if await self._stored() is not None:  # the previous holder of the lease has just finished
            await upload.withdraw()
            return False
        try:
            await self._shared.reserve(self.metadata)
        except NoRoom:
            await upload.withdraw()
            raise
        self._enter(state, upload)
        upload.start()
        self.moved()
        return True

    def _superseded(self) -> None:
        if self.state is BucketState.FETCHING:
            self._enter(BucketState.SUPERSEDED)

    async def _settle(self, superseded: Upload | None) -> bool:
        try:
            await self._abandon(superseded)
            while self.state is BucketState.SETTLING:
                if await self._stored() is not None:
                    return True
                conditions = (await self._shared.capabilities.get()).conditions
                held = await self._lease.look() if conditions else None
                if held is not None and not held.free:
                    await asyncio.sleep(self.bucket.timings.settle)
                elif self._journal is None:
                    return False
                else:
                    await self._take(held, BucketState.NAMING)
            assert self._upload is not None  # noqa: S101 - it is NAMING
            await self._upload.finish()
            self._enter(BucketState.DONE)
        except (BucketFailed, ObjectGone) as error:
            log.warning(
                "%s is verified, and cannot get its name in the bucket: %s",
                self.metadata.hash,
                error,
                extra=event("bucket.unpublished", image=self.metadata.hash),
            )
            return False
        finally:
            await self._end()
        return True

    def _read_into(self, offset: int, buffer: memoryview) -> int:
        """Return what an upload reads with: once it is over, this no longer keeps the journal, or a file, alive."""
        if self._journal is None:
            raise OSError(errno.ESTALE, "the journal is closed")
        return self._journal.read_into(offset, buffer)

    async def _end(self) -> None:
        self._journal = None
        await self._abandon(self._enter(BucketState.DONE))

    async def _abandon(self, upload: Upload | None, failed: str | None = None) -> None:
        if upload is not None:
            await upload.abandon(failed)
