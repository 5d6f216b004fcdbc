"""A note: an image's metadata, kept to be known again by later processes, and when upstream said so.

What a note is as bytes; where it lies and what it is for is the business of who keeps it.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mirror.model.errors import BadUpstream
from mirror.model.metadata import ImageMetadata


@dataclass(frozen=True, slots=True)
class Note:
    """`fetched_at`, with its time zone, is when upstream said so; None in a note that does not tell."""

    metadata: ImageMetadata
    fetched_at: datetime | None = None

    @classmethod
    def parse(cls, raw: bytes) -> "Note":
        """Read a note, whatever else it says. Raises ValueError when it holds no usable metadata."""
        said = json.loads(raw)
        try:
            metadata = ImageMetadata.parse(said["metadata"].encode())
        except (KeyError, TypeError, AttributeError):
            raise ValueError("it has no metadata") from None
        except BadUpstream as error:
            raise ValueError(str(error)) from None
        return cls(metadata, _moment(said.get("fetchedAt")))

    def to_bytes(self) -> bytes:
        """What `parse` reads."""
        said = {"metadata": self.metadata.raw.decode()}
        if self.fetched_at is not None:
            said["fetchedAt"] = self.fetched_at.isoformat()
        return json.dumps(said).encode()


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
