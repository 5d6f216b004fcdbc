"""Keeps the note beside a partial file: which image it is, how to ask for the rest, and whether it was verified."""

import contextlib
import json
from pathlib import Path
from typing import Any

from mirror.common.files import write_durably
from mirror.model.metadata import ImageMetadata
from mirror.store.disk.verified_marker import Identity, described, time_in


class PartialNote:
    """The note at `path` of a partial of this image. A note that cannot be read counts as empty. All of it blocks."""

    def __init__(self, path: Path, metadata: ImageMetadata) -> None:
        self._path = path
        self._metadata = metadata

    def exists(self) -> bool:
        """Return whether there is a note, whatever it says."""
        return self._path.exists()

    def validator(self) -> str | None:
        """Return upstream's validator; None if no request could send it, since every request would fail."""
        validator = self._read().get("validator")
        plain = isinstance(validator, str) and validator.isascii() and validator.isprintable()
        return str(validator) if plain else None

    def seals(self, file: Identity) -> bool:
        """Return whether this file is the whole, verified image, so that only its name is missing."""
        return file.size == self._metadata.size and time_in(self._read().get("verified"), file) is not None

    def write(self, validator: str | None) -> None:
        """Write it durably. Raises OSError."""
        write_durably(self._path, json.dumps(self._said(validator)).encode())

    def seal(self, validator: str | None, file: Identity) -> None:
        """Note that this file was verified. A failure is ignored.

        The note is written in place, since the disk may not allow a new file. A note that a crash has torn counts as
        empty.
        """
        with contextlib.suppress(OSError):
            self._path.write_text(json.dumps(self._said(validator) | {"verified": described(file)}))

    def remove(self) -> None:
        """Remove it, if there is one. Raises OSError."""
        self._path.unlink(missing_ok=True)

    def __str__(self) -> str:
        return str(self._path)

    def _said(self, validator: str | None) -> dict[str, object]:
        return {"metadata": self._metadata.raw.decode(), "validator": validator}

    def _read(self) -> dict[str, Any]:
        try:
            note = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}
