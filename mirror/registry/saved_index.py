"""Keeps an archive's index in `registry.json` beside the image, durably, and trusts it only after a check.

It is valid for one image, one format and one seek index; anything else is as if there were none, and is made again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mirror.common.files import write_durably
from mirror.model.metadata import ImageMetadata
from mirror.registry.index import ArchiveIndex, Blob, NotAnArchive, digest_of, make_manifest
from mirror.registry.seek_index import NAME, DamagedIndex, SeekIndex
from mirror.store.disk.verified_marker import Identity

FILE = "registry.json"

FORMAT = 1
"""Raised when an index that was made before cannot be used, or would be made differently now."""


def save(directory: Path, metadata: ImageMetadata, index: ArchiveIndex) -> None:
    """Write the index, after its seek index is in place. Blocks; raises OSError."""
    seek = index.seek
    _write(
        directory,
        metadata,
        {
            "config": asdict(index.config),
            "layers": [asdict(layer) for layer in index.layers],
            "manifestDigest": index.manifest_digest,
            "repoTags": list(index.repo_tags),
            "warnings": list(index.warnings),
            "seekIndex": {"sha256": seek.sha256, "points": seek.points} if seek else None,
        },
    )


def save_refusal(directory: Path, metadata: ImageMetadata, file: Identity, reason: str) -> None:
    """Note that this `file` of the image was refused, and why, so that it is not tried again. Blocks; raises OSError.

    Another file may have other bytes: this one may have rotted on the disk.
    """
    (directory / NAME).unlink(missing_ok=True)
    _write(directory, metadata, {"refused": reason, "file": asdict(file)})


def load(directory: Path, metadata: ImageMetadata) -> ArchiveIndex | None:
    """Return the index of this image; None when it is missing, damaged, or of another image or format. Blocks.

    Raises NotAnArchive when the image was refused, OSError.
    """
    try:
        saved = json.loads((directory / FILE).read_bytes())
        found = saved["index"]
        if saved["sha256"] != _digest(found) or found["image"] != _image(metadata):
            return None
        if "refused" not in found:
            return _read(directory, found)
        if found["file"] != asdict(Identity.of((directory / "image").stat())):
            return None
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, RecursionError, DamagedIndex):
        return None
    raise NotAnArchive(found["refused"])


def _read(directory: Path, found: Any) -> ArchiveIndex | None:
    config, layers = Blob(**found["config"]), tuple(Blob(**layer) for layer in found["layers"])
    manifest = make_manifest(config, layers)
    if digest_of(manifest) != found["manifestDigest"]:
        return None
    seek = found["seekIndex"]
    return ArchiveIndex(
        manifest=manifest,
        manifest_digest=found["manifestDigest"],
        config=config,
        layers=layers,
        repo_tags=tuple(found["repoTags"]),
        warnings=tuple(found["warnings"]),
        seek=SeekIndex.load(directory, seek["sha256"], seek["points"]) if seek else None,
    )


def _write(directory: Path, metadata: ImageMetadata, found: Mapping[str, object]) -> None:
    index = {"image": _image(metadata), **found}
    text = json.dumps({"sha256": _digest(index), "index": index}, indent=1)
    write_durably(directory / FILE, text.encode())


def _image(metadata: ImageMetadata) -> Mapping[str, object]:
    return {"format": FORMAT, "hash": metadata.hash, "size": metadata.size}


def _digest(index: object) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
