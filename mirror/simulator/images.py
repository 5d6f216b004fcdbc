"""The images a simulator hands out: bytes from a file, or made from a seed, readable at any offset.

A test can hold the same `Image` as the server, and so knows every byte to expect.
"""

import functools
import hashlib
import io
import json
import os
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
"""Bytes generated at once."""

LATEST = "latest"
"""The key in the object store that always holds the current image; no image may have this name."""

_CACHED_BLOCKS = 64
_PART = 8 << 20  # bytes per part of the imagined multipart upload, which shows in the ETag
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What to hand out under `name`: the file at `path`, else `size` bytes made from `seed` (empty: the name).

    `sha256`, when already known, saves reading the image at start; `created` is an ISO 8601 date-time with a zone;
    `image_id` is the docker image's id (empty: an invented one).
    """

    name: str
    size: int = 8 << 20
    seed: str = ""
    path: str = ""
    sha256: str = ""
    filename: str = ""
    created: str = "2025-06-30T12:34:56.000000Z"
    tag: str | None = "11.1.0"
    image_id: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose size in bytes and SHA-256 are known; `spec` repeats both."""

    spec: ImageSpec

    @classmethod
    def load(cls, spec: ImageSpec) -> "Image":
        """Find the size and, unless the spec has it, the hash; that reads or makes every byte once.

        Raises:
            ValueError: the name would not do as part of a URL path.
            OSError: the file cannot be read.
        """
        if not _NAME.fullmatch(spec.name) or spec.name == LATEST:
            raise ValueError(f"an image's name is letters, digits, '.', '_' and '-', and not {LATEST!r}")
        size = Path(spec.path).stat().st_size if spec.path else spec.size
        filename = spec.filename or f"datarobot-portable-prediction-api-{spec.name}.tar.gz"
        image = cls(replace(spec, seed=spec.seed or spec.name, size=size, filename=filename))
        return image if spec.sha256 else cls(replace(image.spec, sha256=image._digest()))

    @property
    def name(self) -> str:
        """The image's name in the simulator."""
        return self.spec.name

    @property
    def size(self) -> int:
        """Bytes."""
        return self.spec.size

    @property
    def etag(self) -> str:
        """A strong ETag as S3 makes for a multipart upload: it looks like a hash and is not the image's."""
        parts = -(-self.size // _PART)
        return f'"{hashlib.md5(self.spec.sha256.encode(), usedforsecurity=False).hexdigest()}-{parts}"'

    @property
    def last_modified(self) -> str:
        """The creation time as an HTTP date."""
        return format_datetime(datetime.fromisoformat(self.spec.created).astimezone(UTC), usegmt=True)

    @property
    def metadata(self) -> dict[str, Any]:
        """The fields of the metadata answer, true to the bytes."""
        invented = hashlib.sha256(f"docker:{self.spec.sha256}".encode()).hexdigest()
        docker_id = self.spec.image_id.removeprefix("sha256:") or invented
        return {
            "baseImageId": docker_id[-24:],
            "created": self.spec.created,
            "datarobotRuntimeImageTag": self.spec.tag,
            "dockerImageId": f"sha256:{docker_id}",
            "filename": self.spec.filename,
            "hash": self.spec.sha256,
            "hashAlgorithm": "SHA256",
            "imageSize": self.size,
            "shortDockerImageId": docker_id[:12],
        }

    def open(self) -> io.FileIO | None:
        """Open the file with the bytes, for `sendfile`; None when they are generated."""
        return io.FileIO(self.spec.path) if self.spec.path else None

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` (inclusive) to `stop` (exclusive), fewer where the image ends."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        if self.spec.path:
            with Path(self.spec.path).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), stop - start, start)
        first = start // BLOCK
        blocks = [_block(self.spec.seed, number) for number in range(first, -(-stop // BLOCK))]
        whole = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        return whole[start - first * BLOCK : stop - first * BLOCK]

    def _digest(self) -> str:
        if self.spec.path:
            with Path(self.spec.path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for start in range(0, self.size, BLOCK):
            digest.update(self.read(start, start + BLOCK))
        return digest.hexdigest()


def metadata_body(fields: dict[str, Any]) -> bytes:
    """The metadata answer as bytes, spaced as no serialiser does by default, so that a rewritten one is noticed."""
    return json.dumps(fields, separators=(" , ", ":")).encode() + b"\n"


@functools.lru_cache(maxsize=_CACHED_BLOCKS)
def _block(seed: str, number: int) -> bytes:
    # SHAKE makes 640 MB/s on one core here, twice `random.randbytes`, and nothing can compress it.
    return hashlib.shake_128(f"{seed}:{number}".encode()).digest(BLOCK)
