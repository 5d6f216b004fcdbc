"""Puts a stored image into another registry, for the command `push` and for hooks: finds it, indexes it, pushes it."""

import asyncio
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mirror.common.progress import Meter
from mirror.common.units import format_size
from mirror.config import Config
from mirror.model.errors import MirrorError, NotFound
from mirror.model.push_target import Target
from mirror.registry import tags
from mirror.registry.index import ArchiveIndex, NotAnArchive
from mirror.registry.indexer import build
from mirror.registry.push import docker_credentials
from mirror.registry.push.pusher import Pushed, push
from mirror.registry.push.remote_registry import RemoteRegistry
from mirror.registry.saved_index import load
from mirror.store.base import StoredImage
from mirror.wiring.selection import open_selection


@dataclass(frozen=True, slots=True)
class PushedImage:
    """An image that is in another registry now, as `target` with its tag."""

    target: Target
    image_hash: str
    pushed: Pushed

    def describe(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "target": str(self.target),
            "hash": self.image_hash,
            "digest": self.pushed.digest,
            "blobsPushed": self.pushed.sent,
            "blobsMounted": self.pushed.mounted,
            "blobsThere": self.pushed.known,
            "bytesPushed": self.pushed.bytes_sent,
        }


async def push_image(config: Config, target: Target, image: str, remote: RemoteRegistry, meter: Meter) -> PushedImage:
    """Push the stored image that `image` names (see `mirror.wiring.selection`) to `remote`, which is `target`'s.

    Its tag is its own, if `target` has none. Raises UsageError, NotFound, StoreUnavailable, MirrorError.
    """
    async with open_selection(config) as selection:
        image_hash = selection.find(image)
        stored = await selection.open(image_hash)
        if not isinstance(stored, StoredImage):
            raise NotFound(f"{image_hash[:12]} is only in the bucket; what is pushed is read from a copy on the disk")
        metadata = stored.metadata
        index = await _index(config.store.path / "images" / image_hash, stored, meter)
        names = [tag for tag in (target.tag, *tags.of_metadata(metadata), *tags.of_archive(index.repo_tags)) if tag]
        if not names:
            raise MirrorError(f"{image_hash[:12]} has no tag of its own: give one, as {target}:TAG")
        target = Target(target.registry, target.repository, names[0])
        known = dict.fromkeys((config.registry.repository, *tags.aliases(index.repo_tags)))
        alike = [name for name in known if name != target.repository]
        meter.say(f"pushing {image_hash[:12]} ({format_size(metadata.size)}) to {target}")
        async with remote:
            pushed = await push(index, stored, remote, names[0], alike, meter)
    meter.say(
        f"{target} is {pushed.digest}: {pushed.sent} blobs pushed ({format_size(pushed.bytes_sent)}), "
        f"{pushed.mounted} taken from other repositories, {pushed.known} were there"
    )
    return PushedImage(target, image_hash, pushed)


async def open_registry(
    target: Target, environ: Mapping[str, str], tls: ssl.SSLContext, *, may_be_plain: bool = False
) -> RemoteRegistry:
    """Make what talks to a registry, with the credential that docker or podman keeps for it. Raises ConfigError."""
    credential = await asyncio.to_thread(docker_credentials.find, target, environ)
    return RemoteRegistry(target, credential, tls, may_be_plain=target.is_local or may_be_plain)


async def _index(directory: Path, image: StoredImage, meter: Meter) -> ArchiveIndex:
    """Return what a running mirror has found out about the archive, else find it out."""
    metadata, doing, stop = image.metadata, "reading the archive", threading.Event()

    def find() -> ArchiveIndex:
        if (known := load(directory, metadata)) is not None:
            return known
        meter.start(metadata.size, 0, doing)
        try:
            return build(
                image.file.fd,
                directory,
                metadata,
                progress=lambda position: meter.show(position, doing),
                stop=stop.is_set,
            )
        finally:
            meter.stop()

    finding = asyncio.get_running_loop().run_in_executor(None, find)
    try:
        return await asyncio.shield(finding)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([finding])  # it reads from the image, which may be closed next
        raise
    except NotAnArchive as refusal:
        raise MirrorError(f"{metadata.hash[:12]} cannot be pushed: {refusal}") from None
