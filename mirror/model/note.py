"""A note: an image's metadata, kept for later processes, and when upstream last said so.

This module turns notes into bytes and back; its users decide where a note is kept and what it is for.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mirror.model.errors import BadUpstream
from mirror.model.metadata import ImageMetadata


@dataclass(frozen=True, slots=True)
class Note:
    """An image's metadata, and when upstream said so (`fetched_at`, aware); None in a note that does not tell."""

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
        """Return the note as bytes, which `parse` reads."""
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
