"""Lets one mirror of a fleet do what all of them find out at about the same time."""

from mirror.store.s3.bucket import Bucket
from mirror.store.s3.objects import ConditionFailed, NotSupported


async def claim(bucket: Bucket, name: str, text: str) -> bool:
    """Write `text` into the object `name`; return False when another mirror has written it, or something else, first.

    On a server without conditions, mirrors that do it within the same moment may all be told True. Raises BucketFailed.
    """
    there, data = await bucket.get(name), text.encode()
    if there is not None and there.data == data:
        return False
    try:
        await bucket.put(name, data, if_absent=there is None, if_etag=there.version.etag if there is not None else None)
    except ConditionFailed:
        return False
    except NotSupported:
        await bucket.put(name, data)
    return True
