"""What is put into a store by hand."""

import hashlib
import json
from pathlib import Path
from typing import Any


def lay_out(store: Path, image: bytes = b"an image", **fields: Any) -> str:
    """Put an image into a store by hand; its hash."""
    digest = hashlib.sha256(image).hexdigest()
    metadata = {
        "hash": digest,
        "hashAlgorithm": "SHA256",
        "imageSize": len(image),
        "filename": "by-hand.tar.gz",
        "created": "2024-01-02T03:04:05Z",
    }
    directory = store / "images" / digest
    directory.mkdir(parents=True)
    (directory / "image").write_bytes(image)
    (directory / "metadata.json").write_text(json.dumps(metadata | fields))
    return digest
