"""What is listed, as machines see it: the same over HTTP and on the command line."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mirror.store.base import StoredInfo
from mirror.store.removal import Removal
from mirror.store.verification import Verdict, Verified

if TYPE_CHECKING:
    from mirror.checking import Checked
    from mirror.exporting import Exported


def describe(info: StoredInfo, *, current: bool) -> dict[str, object]:
    """Return an image's metadata as upstream wrote it, and beside it what the mirror knows of the image."""
    fields: dict[str, object] = json.loads(info.metadata.raw)
    return fields | {
        "storedAt": info.stored_at.isoformat(),
        "lastServedAt": info.last_served_at.isoformat() if info.last_served_at else None,
        "pinned": info.pinned,
        "current": current,
        "places": list(info.places),
    }


def describe_verified(verified: Verified) -> dict[str, object]:
    """Return what became of one image's verification."""
    return {
        "hash": verified.image_hash,
        "place": verified.place,
        "good": verified.verdict is Verdict.GOOD,
        "verdict": verified.verdict,
        "detail": verified.detail,
    }


def describe_removal(removal: Removal) -> dict[str, object]:
    """Return what was removed and how many bytes that freed."""
    return {
        "kind": removal.kind,
        "path": str(removal.path),
        "size": removal.size,
        "reason": removal.reason,
    }


def describe_exported(exported: "Exported") -> dict[str, object]:
    """Return a file of a bundle."""
    return {"path": str(exported.path), "size": exported.size, "sha256": exported.sha256}


def describe_imported(image_hash: str, *, stored: bool, current: bool, parts: "Sequence[Checked]") -> dict[str, object]:
    """Return what became of an image that was carried here, and what was found of each part that was looked at."""
    looked_at = [
        {"path": str(part.path), "size": part.size, "good": part.trouble is None, "detail": part.trouble}
        for part in parts
    ]
    return {"hash": image_hash, "stored": stored, "current": current, "parts": looked_at}
