"""Pushes all blobs of an image that the other registry does not have, and then its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass

from mirror.common.progress import Meter
from mirror.common.units import format_size
from mirror.model.errors import MirrorError
from mirror.registry.blob_body import BlobBody, blob_threads
from mirror.registry.index import MANIFEST_TYPE, ArchiveIndex
from mirror.registry.push.remote_registry import RemoteRegistry
from mirror.store.base import Cut, StoredImage


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push came to: `digest` is the manifest's; the rest are numbers of blobs, and bytes that were sent."""

    digest: str
    sent: int
    mounted: int
    known: int
    bytes_sent: int


async def push(
    index: ArchiveIndex, image: StoredImage, remote: RemoteRegistry, tag: str, alike: Sequence[str], meter: Meter
) -> Pushed:
    """Push an image to `remote` under `tag`. Blobs may be taken from the repositories `alike` of the same registry.

    The manifest comes last, so that nobody can pull what is not whole. Raises MirrorError.
    """
    await remote.enter()
    sent, mounted, known, bytes_sent = 0, 0, 0, 0
    threads = blob_threads()
    bodies = [BlobBody(image, index, blob, threads) for blob in index.blobs.values()]
    try:
        for number, body in enumerate(bodies, 1):
            if await remote.has(body.blob.digest):
                known += 1
            elif await _mounted(remote, body.blob.digest, alike):
                mounted += 1
            else:
                await _send(body, remote, f"pushing {number} of {len(bodies)}", meter)
                sent += 1
                bytes_sent += body.blob.size
    except Cut as error:
        raise MirrorError(f"the image cannot be read any more: {error}") from None
    finally:
        threads.shutdown()
    await remote.put_manifest(tag, index.manifest, MANIFEST_TYPE)
    return Pushed(index.manifest_digest, sent, mounted, known, bytes_sent)


async def _mounted(remote: RemoteRegistry, digest: str, alike: Sequence[str]) -> bool:
    for repository in alike:
        if await remote.mount(digest, repository):
            return True
    return False


async def _send(body: BlobBody, remote: RemoteRegistry, doing: str, meter: Meter) -> None:
    blob = body.blob
    meter.start(blob.size, 0, doing)
    try:
        await remote.upload(blob.digest, blob.size, body.pieces, lambda position: meter.show(position, doing))
    finally:
        meter.stop()
    meter.say(f"{blob.digest[:19]} ({format_size(blob.size)}) is pushed")
