"""Notes: what is written is read again, what a person wrote too, and what cannot be used is refused."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note
from tests.support.metadata import GOOD

RAW = json.dumps(GOOD).encode()
METADATA = ImageMetadata.parse(RAW)


@pytest.mark.parametrize(
    "fetched_at",
    [None, datetime(2026, 1, 2, 3, 4, 5, 6, UTC), datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2)))],
)
def test_what_is_written_is_read_again(fetched_at: datetime | None) -> None:
    note = Note(METADATA, fetched_at)
    assert Note.parse(note.to_bytes()) == note


@pytest.mark.parametrize(
    ("more", "fetched_at"),
    [
        ({}, None),
        ({"fetchedAt": "2026-01-02T03:04:05"}, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ({"fetchedAt": "yesterday"}, None),
        ({"fetchedAt": 5}, None),
        ({"validator": '"abc"'}, None),
    ],
)
def test_a_note_may_tell_no_time_or_more_than_that(more: dict[str, object], fetched_at: datetime | None) -> None:
    assert Note.parse(json.dumps({"metadata": RAW.decode(), **more}).encode()) == Note(METADATA, fetched_at)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"\xff",
        b"5",
        b"[]",
        b'"metadata"',
        b"null",
        b"{}",
        b'{"metadata": {}}',
        b'{"metadata": "{}"}',
        b'{"metadata": "\\ud800"}',
        RAW,
    ],
)
def test_a_note_without_usable_metadata_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Note.parse(raw)
