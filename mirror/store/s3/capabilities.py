"""What a server can do, found out by trying: servers differ, and some say yes and do nothing."""

import secrets
from dataclasses import dataclass

from mirror.store.s3.bucket import Bucket, ConditionFailed, NotSupported
from mirror.store.s3.errors import BucketFailed


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`conditions`: writes that fail when another was first. `copies`: parts of an upload taken from objects."""

    conditions: bool
    copies: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """What is done without, in words."""
        said = []
        if not self.conditions:
            said.append("it has no conditional writes, so each replica fetches an image once, not all of them together")
        if not self.copies:
            said.append("it cannot copy within itself, so each part of an image is sent to it twice")
        return tuple(said)


async def find_out(bucket: Bucket) -> Capabilities:
    """Try. What is written for it is removed again. Raises BucketFailed."""
    probe = f"probe{secrets.token_hex(8)}"
    return Capabilities(conditions=await _conditions(bucket, f"leases/{probe}"), copies=await _copies(bucket, probe))


async def _conditions(bucket: Bucket, name: str) -> bool:
    try:
        etag = await bucket.put(name, b"1", if_absent=True)
    except NotSupported:
        return False
    try:
        if await _took(bucket, name, if_absent=True) or await _took(bucket, name, if_etag=f'"{"0" * 32}"'):
            return False
        # How this server wants them: first as it was found before, since leases may be renewed meanwhile.
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
        if error.code in {"InvalidRequest", "EntityTooSmall"}:  # it knows what a copy is, and wants more bytes
            return True
        raise
    finally:
        await bucket.abort_upload(image, upload)
        await bucket.delete(part)
    return True
