"""One stored image as the list of them shows it to machines: the same over HTTP and on the command line."""

import json

from mirror.store.base import StoredInfo


def describe(info: StoredInfo, *, current: bool) -> dict[str, object]:
    """Return an image's metadata as upstream wrote it, and beside it what the mirror knows of the image."""
    fields: dict[str, object] = json.loads(info.metadata.raw)
    return fields | {
        "storedAt": info.stored_at.isoformat(),
        "lastServedAt": info.last_served_at.isoformat() if info.last_served_at else None,
        "pinned": info.pinned,
        "current": current,
    }
