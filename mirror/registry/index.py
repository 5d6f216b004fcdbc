"""What an archive holds, as a registry shows it: blobs, the manifest, and where the bytes of each blob are."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mirror.common.units import GIB, MIB
from mirror.registry.seek_index import SeekIndex

CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"

MAX_MEMBERS = 20_000
"""Members of a tar that are read at most."""

MAX_DOCUMENT = 4 * MIB
"""Bytes of a `manifest.json`, a config or a manifest at most: what clients take."""


def max_inflated(archive: int) -> int:
    """Return to how many bytes an archive of that size may inflate, its layers included."""
    return GIB + 50 * archive


class NotAnArchive(Exception):
    """The image is no docker archive, or one that must not be served; the text says why, to people."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A config or layer: `size` bytes are served, whose SHA-256 is `digest` ("sha256:" and 64 hexadecimal digits).

    Its bytes are `length` bytes of the uncompressed archive from `offset`: as they are, or wrapped as gzip if
    there is a `crc32` (see `mirror.registry.wrapping`).
    """

    digest: str
    size: int
    media_type: str
    offset: int
    length: int
    crc32: int | None = None

    @property
    def descriptor(self) -> Mapping[str, object]:
        """As a manifest names it."""
        return {"digest": self.digest, "mediaType": self.media_type, "size": self.size}


@dataclass(frozen=True, slots=True)
class ArchiveIndex:
    """What a registry serves of one archive: `manifest` to the byte, and every blob that it names by digest.

    `layers` are in order; one that is used twice is there twice. `repo_tags` are the names in the archive, as they are
    there. `warnings` are for operators. `seek` has the points of a compressed archive; None for a plain tar.
    """

    manifest: bytes
    manifest_digest: str
    config: Blob
    layers: tuple[Blob, ...]
    repo_tags: tuple[str, ...]
    warnings: tuple[str, ...]
    seek: SeekIndex | None

    @property
    def blobs(self) -> Mapping[str, Blob]:
        """Return config and layers by digest."""
        return {blob.digest: blob for blob in (self.config, *self.layers)}


def make_manifest(config: Blob, layers: Sequence[Blob]) -> bytes:
    """Return the manifest. Clients pin its digest, so it stays what it is, to the byte, for ever."""
    document = {
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
        "mediaType": MANIFEST_TYPE,
        "schemaVersion": 2,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def digest_of(data: bytes) -> str:
    """Return the digest of `data` as a registry writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
