"""Names of stored images in the registry: tags and repository names, from an image's metadata and its archive.

This is pure logic. What is no valid tag or name is left out.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mirror.model.image_name import is_repository, is_tag
from mirror.model.metadata import ImageMetadata

LATEST = "latest"
"""The tag of what is current. No archive can claim it."""

_SUFFIX = re.compile(r"(\.tar)?(\.(gz|xz|bz2|zst))?$|\.tgz$", re.IGNORECASE)
_FILE = re.compile(r"datarobot-portable-prediction-api-(?P<version>.+)")
_VERSION = re.compile(r"(?:^|[-_])(?P<version>v?\d+\.\d+\.\d+(?:-[a-zA-Z0-9.-]+)?)$")


@dataclass(frozen=True, slots=True)
class Named:
    """An image with the tags that it claims."""

    hash: str
    stored_at: datetime
    tags: Sequence[str]


def of_metadata(metadata: ImageMetadata) -> Sequence[str]:
    """Return the tags that metadata gives an image: the version in its file name, and `shortDockerImageId`."""
    return tuple(dict.fromkeys(tag for tag in _of_metadata(metadata) if is_tag(tag) and tag != LATEST))


def of_archive(repo_tags: Iterable[str]) -> Sequence[str]:
    """Return the tags among the `RepoTags` of an archive."""
    return tuple(dict.fromkeys(tag for _, tag in _split(repo_tags) if is_tag(tag) and tag != LATEST))


def aliases(repo_tags: Iterable[str]) -> Sequence[str]:
    """Return the names of repositories among the `RepoTags` of an archive, without their registry's host."""
    return tuple(dict.fromkeys(name for name, _ in _split(repo_tags) if is_repository(name)))


def by_tag(images: Iterable[Named]) -> Mapping[str, str]:
    """Return which image has each tag, by its hash: of several that claim it, the one that was stored last."""
    found: dict[str, str] = {}
    for image in sorted(images, key=lambda image: (image.stored_at, image.hash)):
        found |= dict.fromkeys(image.tags, image.hash)
    return found


def _of_metadata(metadata: ImageMetadata) -> Iterator[str]:
    name = _SUFFIX.sub("", re.split(r"[/\\]", metadata.filename)[-1], count=1)
    if found := _FILE.fullmatch(name) or _VERSION.search(name):
        yield found["version"]
    if isinstance(short := json.loads(metadata.raw.decode("utf-8-sig")).get("shortDockerImageId"), str):
        yield short


def _split(repo_tags: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the repository's name, without its host, and the tag of each."""
    for text in repo_tags:
        name, colon, tag = text.rpartition(":")
        if not colon or "/" in tag or "@" in name:  # that colon is before a port, or in a digest
            continue
        host, slash, rest = name.partition("/")
        yield (rest if slash and (host == "localhost" or "." in host or ":" in host) else name), tag
