"""Upstream's metadata: what is taken, and how what cannot be used is refused by name."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.model.errors import BadUpstream
from mirror.model.metadata import ImageMetadata, is_hash
from mirror.model.note import Note
from tests.support.metadata import GOOD


def parse(**changes: Any) -> ImageMetadata:
    return ImageMetadata.parse(json.dumps(GOOD | changes).encode())


def test_the_body_is_kept_to_the_byte_with_unknown_fields() -> None:
    raw = b'{"new": 1, ' + json.dumps(GOOD).encode()[1:] + b"\n"
    metadata = ImageMetadata.parse(raw)
    assert metadata.raw == raw
    assert (metadata.hash, metadata.size, metadata.filename) == (GOOD["hash"], GOOD["imageSize"], GOOD["filename"])
    assert metadata.created == datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def test_a_date_without_a_zone_is_utc_and_a_hash_in_capitals_is_lowered() -> None:
    assert parse(created="2024-05-06T07:08:09").created.tzinfo is UTC
    assert parse(hash="AB" * 32).hash == "ab" * 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hash", "../../../../etc/passwd"),
        ("hash", "ab" * 31),
        ("hash", "ab" * 32 + "/"),
        ("hash", None),
        ("hash", 5),
        ("hashAlgorithm", "MD5"),
        ("hashAlgorithm", "sha512"),
        ("imageSize", -1),
        ("imageSize", 0),
        ("imageSize", 10**30),
        ("imageSize", "5"),
        ("imageSize", 5.5),
        ("imageSize", True),
        ("filename", None),
        ("filename", ["a"]),
        ("created", "yesterday"),
        ("created", 0),
        ("created", "0001-01-01T00:00:00Z"),
        ("dockerImageId", 7),
    ],
)
def test_a_malformed_field_is_refused_by_name_without_quoting_it(field: str, value: Any) -> None:
    with pytest.raises(BadUpstream, match=field) as refusal:
        parse(**{field: value})
    assert "passwd" not in refusal.value.message
    assert refusal.value.status == 502


@pytest.mark.parametrize("field", ["hash", "hashAlgorithm", "imageSize", "filename", "created"])
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    with pytest.raises(BadUpstream, match=f"'{field}' is missing"):
        ImageMetadata.parse(json.dumps({name: value for name, value in GOOD.items() if name != field}).encode())


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())
)
def test_whatever_upstream_sends_is_metadata_or_a_refusal_in_ascii(raw: bytes) -> None:
    with pytest.raises(BadUpstream) as refusal:
        ImageMetadata.parse(raw)
    assert refusal.value.message.isascii()


@given(st.text())
def test_only_64_lower_case_hexadecimal_digits_are_a_hash(text: str) -> None:
    assert not is_hash(text) or (len(text) == 64 and set(text) <= set("0123456789abcdef"))


def test_a_byte_order_mark_is_kept_and_does_no_harm() -> None:
    raw = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    metadata = ImageMetadata.parse(raw)
    assert metadata.raw == raw
    assert Note.parse(Note(metadata).to_bytes()).metadata.raw == raw
