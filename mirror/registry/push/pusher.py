"""Pushes all blobs of an image that the other registry does not have, and then its manifest."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from mirror.common.progress import Meter
from mirror.common.units import format_size
from mirror.registry.blob_reader import read
from mirror.registry.index import MANIFEST_TYPE, ArchiveIndex, Blob
from mirror.registry.push.remote_registry import RemoteRegistry
from mirror.store.shared_file import SharedFile


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push came to: `digest` is the manifest's; the rest are numbers of blobs, and bytes that were sent."""

    digest: str
    sent: int
    mounted: int
    known: int
    bytes_sent: int


async def push(
    index: ArchiveIndex, archive: SharedFile, remote: RemoteRegistry, tag: str, alike: Sequence[str], meter: Meter
) -> Pushed:
    """Push an image to `remote` under `tag`. Blobs may be taken from the repositories `alike` of the same registry.

    The manifest comes last, so that nobody can pull what is not whole. Raises MirrorError.
    """
    await remote.enter()
    sent, mounted, known, bytes_sent = 0, 0, 0, 0
    blobs = list(index.blobs.values())
    for number, blob in enumerate(blobs, 1):
        if await remote.has(blob.digest):
            known += 1
        elif await _mounted(remote, blob, alike):
            mounted += 1
        else:
            await _send(index, archive, blob, remote, f"pushing {number} of {len(blobs)}", meter)
            sent += 1
            bytes_sent += blob.size
    await remote.put_manifest(tag, index.manifest, MANIFEST_TYPE)
    return Pushed(index.manifest_digest, sent, mounted, known, bytes_sent)


async def _mounted(remote: RemoteRegistry, blob: Blob, alike: Sequence[str]) -> bool:
    for repository in alike:
        if await remote.mount(blob.digest, repository):
            return True
    return False


async def _send(
    index: ArchiveIndex, archive: SharedFile, blob: Blob, remote: RemoteRegistry, doing: str, meter: Meter
) -> None:
    async def pieces(start: int, stop: int) -> AsyncIterator[memoryview]:
        reading = read(archive.fd, index.seek, blob, start, stop)
        while (piece := await asyncio.to_thread(next, reading, None)) is not None:
            yield piece

    meter.start(blob.size, 0, doing)
    try:
        await remote.upload(blob.digest, blob.size, pieces, lambda position: meter.show(position, doing))
    finally:
        meter.stop()
    meter.say(f"{blob.digest[:19]} ({format_size(blob.size)}) is pushed")
