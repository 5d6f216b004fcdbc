"""Compares the size and SHA-256 of what was received with what upstream promised.

Nothing else in the code does this.
"""

import hashlib

from mirror.model.metadata import ImageMetadata
from mirror.store.base import Corrupt


def check(metadata: ImageMetadata, position: int, digest: "hashlib._Hash") -> None:
    """Compare the `position` bytes received, and their SHA-256, with what was promised. Raises Corrupt."""
    received = digest.hexdigest()
    if position != metadata.size or received != metadata.hash:
        raise Corrupt(f"{metadata.hash} ({metadata.size} bytes)", f"{received} ({position} bytes)")
