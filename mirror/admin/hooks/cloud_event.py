"""Makes the JSON that receivers get: CloudEvents 1.0, structured mode, on one line.

It never has a secret in it. Texts from outside are cut, so that no event is large.
"""

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mirror.common.log import harmless
from mirror.model.notification import Notification
from mirror.registry.tags import of_metadata

CONTENT_TYPE = "application/cloudevents+json"

LONGEST = 500
"""Characters of a text from outside, at most."""


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """An event as it is queued, signed and sent: its `body`, and what of it the mirror needs to deliver it."""

    body: bytes
    id: str
    type: str
    at: datetime
    image: str | None
    tags: Sequence[str]

    @classmethod
    def parse(cls, body: bytes) -> "CloudEvent":
        """Read what `encoded` made. Raises ValueError when it is something else, for instance after a power cut."""
        try:
            fields = json.loads(body)
            at = datetime.fromisoformat(fields["time"]).astimezone(UTC)
            image = fields["data"].get("image") or {}
            return cls(body, str(fields["id"]), str(fields["type"]), at, image.get("hash"), image.get("tags", ()))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no event of a hook: {type(error).__name__}") from None

    def age(self, now: datetime) -> float:
        """Return how many seconds ago it happened; 0 when the clock says that it did not yet."""
        return max(0.0, (now - self.at).total_seconds())


def encoded(notification: Notification) -> bytes:
    """Return the event of a notification."""
    data: dict[str, object] = {"message": _short(notification.message)}
    if notification.image is not None:
        data["image"] = {"hash": notification.image, **_described(notification)}
    data |= {name: _short(value) if isinstance(value, str) else value for name, value in notification.details.items()}
    fields: dict[str, object] = {
        "specversion": "1.0",
        "id": notification.id,
        "source": f"urn:pps-mirror:{socket.gethostname()}",
        "type": str(notification.kind),
        "time": notification.at.astimezone(UTC).isoformat(timespec="milliseconds"),
        "datacontenttype": "application/json",
    }
    if notification.image is not None:
        fields["subject"] = notification.image
    return json.dumps(fields | {"data": data}, separators=(",", ":")).encode()


def _described(notification: Notification) -> Mapping[str, object]:
    if (metadata := notification.metadata) is None:
        return {}
    return {
        "filename": _short(metadata.filename),
        "size": metadata.size,
        "created": metadata.created.isoformat(),
        "tags": notification.tags or of_metadata(metadata),
    }


def _short(text: str) -> str:
    return text if len(text := harmless(text)) <= LONGEST else f"{text[: LONGEST - 3]}..."
