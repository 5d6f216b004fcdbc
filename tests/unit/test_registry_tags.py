"""Tags and names in the registry, from metadata and from `RepoTags`."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from mirror.model.metadata import ImageMetadata
from mirror.registry.tags import Named, aliases, by_tag, of_archive, of_metadata


def metadata(filename: str, **more: Any) -> ImageMetadata:
    fields = {
        "hash": "a" * 64,
        "hashAlgorithm": "SHA256",
        "imageSize": 1,
        "filename": filename,
        "created": "2025-06-30T12:34:56Z",
    }
    return ImageMetadata.parse(json.dumps(fields | more).encode())


@pytest.mark.parametrize(
    ("filename", "tags"),
    [
        ("datarobot-portable-prediction-api-7.0.0-r1736.tar.gz", ["7.0.0-r1736"]),
        ("datarobot-portable-prediction-api-11.1.0.tgz", ["11.1.0"]),
        ("datarobot-portable-prediction-api-v1.tar", ["v1"]),
        ("some/where/datarobot-portable-prediction-api-7.0.0.tar.gz", ["7.0.0"]),
        ("pps_8.0.1-r2.b.tar.gz", ["8.0.1-r2.b"]),
        ("9.0.0", ["9.0.0"]),
        ("pps.tar.gz", []),
        ("datarobot-portable-prediction-api-7.0.0 r1.tar.gz", []),
        ("datarobot-portable-prediction-api-latest.tar.gz", []),
        (f"datarobot-portable-prediction-api-{'9' * 129}.tar.gz", []),
        ("", []),
    ],
)
def test_the_version_in_the_file_name_is_a_tag(filename: str, tags: list[str]) -> None:
    assert list(of_metadata(metadata(filename))) == tags


def test_the_short_image_id_is_a_tag_unless_it_is_none_that_is_valid() -> None:
    name = "datarobot-portable-prediction-api-7.0.0.tar.gz"
    assert list(of_metadata(metadata(name, shortDockerImageId="0123456789ab"))) == ["7.0.0", "0123456789ab"]
    for invalid in ("sha256:0123", "", "-x", None):
        assert list(of_metadata(metadata(name, shortDockerImageId=invalid))) == ["7.0.0"]


def test_a_byte_order_mark_before_the_metadata_is_no_trouble() -> None:
    marked = b"\xef\xbb\xbf" + metadata("pps-7.0.0.tar.gz", shortDockerImageId="0123456789ab").raw
    assert list(of_metadata(ImageMetadata.parse(marked))) == ["7.0.0", "0123456789ab"]


@pytest.mark.parametrize(
    ("repo_tag", "alias", "tag"),
    [
        ("datarobot/pps:7.0.0", "datarobot/pps", "7.0.0"),
        ("registry.example.com/datarobot/pps:7.0.0", "datarobot/pps", "7.0.0"),
        ("registry.example.com:5000/pps:7.0.0", "pps", "7.0.0"),
        ("localhost/pps:7.0.0", "pps", "7.0.0"),
        ("host:5000/a/b/c:T_1.x-y", "a/b/c", "T_1.x-y"),
        ("pps:latest", "pps", None),
        ("host:5000/pps", None, None),
        ("pps", None, None),
        ("pps@sha256:" + "0" * 64, None, None),
        ("Upper/Case:7.0.0", None, "7.0.0"),
        ("a/../etc:7.0.0", None, "7.0.0"),
        ("a//b:7.0.0", None, "7.0.0"),
        ("pps:7/../0", None, None),
        ("pps: 7", "pps", None),
        ("", None, None),
    ],
)
def test_repo_tags_give_a_name_without_its_host_and_a_tag(repo_tag: str, alias: str | None, tag: str | None) -> None:
    assert (list(aliases([repo_tag])), list(of_archive([repo_tag]))) == (
        [] if alias is None else [alias],
        [] if tag is None else [tag],
    )


def test_of_several_images_with_one_tag_the_one_that_was_stored_last_has_it() -> None:
    first = Named("b" * 64, datetime(2025, 1, 1, tzinfo=UTC), ["7.0.0", "one"])
    second = Named("a" * 64, datetime(2025, 1, 2, tzinfo=UTC), ["7.0.0", "two"])
    expected = {"7.0.0": second.hash, "one": first.hash, "two": second.hash}
    assert by_tag([first, second]) == by_tag([second, first]) == expected
