"""Describes images, verifications and removals as JSON, in the same form over HTTP and on the command line."""

import json

from mirror.store.base import StoredInfo
from mirror.store.disk.removal import Removal
from mirror.store.disk.verification import Verdict, Verified


def describe(info: StoredInfo, *, current: bool) -> dict[str, object]:
    """Return an image's metadata as upstream wrote it, together with what the mirror knows of the image."""
    fields: dict[str, object] = json.loads(info.metadata.raw)
    return fields | {
        "storedAt": info.stored_at.isoformat(),
        "lastServedAt": info.last_served_at.isoformat() if info.last_served_at else None,
        "pinned": info.pinned,
        "current": current,
        "places": list(info.places),
    }


def describe_verified(verified: Verified) -> dict[str, object]:
    """Return the result of verifying one image."""
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
