"""Puts a stored image into another registry, for the command `push` and for hooks: finds it, indexes it, pushes it."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mirror.common.progress import Meter
from mirror.common.units import format_size
from mirror.config import Config
from mirror.model.errors import ConfigError, MirrorError, NotFound
from mirror.model.metadata import ImageMetadata
from mirror.model.push_target import Target
from mirror.registry import tags
from mirror.registry.index import ArchiveIndex, NotAnArchive
from mirror.registry.indexer import Stopped, build
from mirror.registry.push import docker_credentials
from mirror.registry.push.pusher import Pushed, push
from mirror.registry.push.remote_registry import RemoteRegistry
from mirror.registry.saved_index import load
from mirror.store.shared_file import SharedFile
from mirror.wiring.selection import Selection, open_selection


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


async def push_image(
    config: Config,
    target: Target,
    image: str,
    environ: Mapping[str, str],
    meter: Meter,
    *,
    ca_file: Path | None = None,
    verify_tls: bool = True,
) -> PushedImage:
    """Push the stored image that `image` names (see `mirror.wiring.selection`); its own tag, if `target` has none.

    Without `verify_tls` any certificate will do, and plain http as well. Raises UsageError, ConfigError, NotFound,
    StoreUnavailable, MirrorError.
    """
    remote = await open_registry(target, environ, ca_file=ca_file, verify_tls=verify_tls)
    async with open_selection(config) as selection:
        image_hash = selection.find(image)
        metadata, archive = await _archive(selection, image_hash)
        index = await _index(config, metadata, archive, meter)
        names = [tag for tag in (target.tag, *tags.of_metadata(metadata), *tags.of_archive(index.repo_tags)) if tag]
        if not names:
            raise MirrorError(f"{image_hash[:12]} has no tag of its own: give one, as {target}:TAG")
        target = Target(target.registry, target.repository, names[0])
        known = dict.fromkeys((config.registry.repository, *tags.aliases(index.repo_tags)))
        alike = [name for name in known if name != target.repository]
        meter.say(f"pushing {image_hash[:12]} ({format_size(metadata.size)}) to {target}")
        async with remote:
            pushed = await push(index, archive, remote, names[0], alike, meter)
    meter.say(
        f"{target} is {pushed.digest}: {pushed.sent} blobs pushed ({format_size(pushed.bytes_sent)}), "
        f"{pushed.mounted} taken from other repositories, {pushed.known} were there"
    )
    return PushedImage(target, image_hash, pushed)


async def open_registry(
    target: Target, environ: Mapping[str, str], *, ca_file: Path | None = None, verify_tls: bool = True
) -> RemoteRegistry:
    """Make what talks to a registry, with the credential that docker or podman keeps for it. Raises ConfigError."""
    tls = _tls(ca_file, verify_tls=verify_tls)
    credential = await asyncio.to_thread(docker_credentials.find, target, environ)
    return RemoteRegistry(target, credential, tls, may_be_plain=target.is_local or not verify_tls)


async def _archive(selection: Selection, image_hash: str) -> tuple[ImageMetadata, SharedFile]:
    for _, place in selection.places(image_hash):
        image = await place.open(image_hash)
        if image is not None and (file := image.file_at(0)) is not None:
            return image.metadata, file
    if image_hash in selection.sizes.get("disk", {}):
        raise NotFound(
            f"{image_hash[:12]} is stored, but not as an image that was verified: run "
            f"`pps-mirror verify {image_hash[:12]}`"
        )
    raise NotFound(f"{image_hash[:12]} is only in the bucket; what is pushed is read from a copy on the disk")


async def _index(config: Config, metadata: ImageMetadata, archive: SharedFile, meter: Meter) -> ArchiveIndex:
    """Return what a running mirror has found out about the archive, else find it out."""
    directory = config.store.path / "images" / metadata.hash
    stopping = False

    def find() -> ArchiveIndex:
        if (known := load(directory, metadata)) is not None:
            return known
        meter.start(metadata.size, 0, "reading the archive")
        try:
            return build(
                archive.fd,
                directory,
                metadata,
                progress=lambda position: meter.show(position, "reading the archive"),
                stop=lambda: stopping,
            )
        finally:
            meter.stop()

    try:
        return await asyncio.to_thread(find)
    except asyncio.CancelledError:
        stopping = True
        raise
    except NotAnArchive as refusal:
        raise MirrorError(f"{metadata.hash[:12]} cannot be pushed: {refusal}") from None
    except Stopped:
        raise AssertionError("nobody waits for it") from None


def _tls(ca_file: Path | None, *, verify_tls: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError:
            raise ConfigError(f"ca_file {ca_file} has no PEM certificates") from None
        except OSError as error:
            raise ConfigError(f"ca_file {ca_file} cannot be read: {error.strerror}") from None
    return context
