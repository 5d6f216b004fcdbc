"""Finds out by trial what a server can do: servers differ, and some accept a request but ignore what it asks for."""

import asyncio
import logging
import secrets
from dataclasses import dataclass

from cachetools import TTLCache

from mirror.common.log import event
from mirror.store.s3.bucket import Bucket
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.objects import ConditionFailed, NotSupported

TRIED = 3600.0
"""Seconds before the server's capabilities are tried again: servers are upgraded, and moved."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the server can do.

    `conditions`: it refuses a write when another write came first. `copies`: it makes parts of an upload from objects.
    """

    conditions: bool
    copies: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """Return in words what the mirror has to do without."""
        said = []
        if not self.conditions:
            said.append("it has no conditional writes, so each replica fetches an image once, not all of them together")
        if not self.copies:
            said.append("it cannot copy within itself, so each part of an image is sent to it twice")
        return tuple(said)


class KnownCapabilities:
    """Remembers what the server of `bucket` can do, for an hour or until there is reason to doubt it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._known: TTLCache[str, Capabilities] = TTLCache(1, TRIED)
        self._missing: tuple[str, ...] = ()
        self._finding_out = asyncio.Lock()

    async def get(self) -> Capabilities:
        """Return what the server can do, as found within the last hour. Raises BucketFailed."""
        async with self._finding_out:
            if (found := self._known.get(self._bucket.name)) is None:
                found = self._known[self._bucket.name] = await find_out(self._bucket)
                for missing in found.missing if found.missing != self._missing else ():
                    log.warning("the bucket %s: %s", self._bucket.name, missing, extra=event("bucket.limited"))
                self._missing = found.missing
            return found

    def doubt(self) -> None:
        """Find out again at the next need: the server has refused something, or another server may be answering."""
        self._known.clear()


async def find_out(bucket: Bucket) -> Capabilities:
    """Try what the server can do, and remove what was written for that. Raises BucketFailed."""
    probe = f"probe{secrets.token_hex(8)}"
    return Capabilities(conditions=await _conditions(bucket, f"leases/{probe}"), copies=await _copies(bucket, probe))


async def _conditions(bucket: Bucket, name: str) -> bool:
    try:
        etag = await bucket.put(name, b"1", if_absent=True)
    except NotSupported:
        return False
    except ConditionFailed:
        if (there := await bucket.get(name)) is None:
            return False
        etag = there.version.etag  # it is ours: the answer to the write was lost, and the client wrote again
    try:
        if await _took(bucket, name, if_absent=True) or await _took(bucket, name, if_etag=f'"{"0" * 32}"'):
            return False
        # In the form that this server wants them: first the form found before, since leases may be renewed in the
        # meantime.
        if await _took(bucket, name, if_etag=etag):
            return True
        bucket.quoted = not bucket.quoted
        if await _took(bucket, name, if_etag=etag):
            return True
        bucket.quoted = not bucket.quoted
    except NotSupported:
        pass
    finally:
        await bucket.delete(name)
    return False


async def _took(bucket: Bucket, name: str, *, if_absent: bool = False, if_etag: str | None = None) -> bool:
    try:
        await bucket.put(name, b"2", if_absent=if_absent, if_etag=if_etag)
    except ConditionFailed:
        return False
    return True


async def _copies(bucket: Bucket, probe: str) -> bool:
    part, image = f"parts/{probe}/{probe}/0", f"images/{probe}"
    etag = await bucket.put(part, b"1")
    upload = await bucket.begin_upload(image)
    try:
        await bucket.copy_part(image, upload, 1, part, etag)
    except (NotSupported, ConditionFailed):
        return False
    except BucketFailed as error:
        if error.code in {"InvalidRequest", "EntityTooSmall"}:  # it knows how to copy, but wants more bytes
            return True
        raise
    finally:
        await bucket.abort_upload(image, upload)
        await bucket.delete(part)
    return True
