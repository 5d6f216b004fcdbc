"""Reads the two documents of a docker archive: `manifest.json` and an image's config."""

import json
from codecs import BOM_UTF8
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from mirror.model.metadata import ImageMetadata, is_hash
from mirror.registry.index import NotAnArchive

_MAX_VALUES = 50_000
"""Values in one document at most, so that it takes little memory."""


class Entry(BaseModel):
    """An image in `manifest.json`: the names of the members that are its config and layers, and its tags."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    Config: str
    RepoTags: list[str] | None = None
    Layers: list[str]


class _Manifest(RootModel[list[Entry]]):
    model_config = ConfigDict(strict=True)


class _RootFs(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    diff_ids: list[str] | None = None


class _Config(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    rootfs: _RootFs


def wanted_id(metadata: ImageMetadata) -> str | None:
    """Return the id that upstream gives the image, as 64 hexadecimal digits; None when it gives none."""
    document = json.loads(metadata.raw.removeprefix(BOM_UTF8))
    told = str(document.get("dockerImageId") or "").lower().removeprefix("sha256:")
    return told if is_hash(told) else None


def entries(manifest: bytes) -> Sequence[Entry]:
    """Read `manifest.json`; at least one. Raises NotAnArchive."""
    _check_values(manifest, "manifest.json")
    try:
        found = _Manifest.model_validate_json(manifest).root
    except ValidationError as error:
        raise NotAnArchive(f"its manifest.json is unusable: {_explain(error)}") from None
    if not found:
        raise NotAnArchive("its manifest.json names no image")
    return found


def diff_ids(config: bytes) -> Sequence[str]:
    """Return the digests of the uncompressed layers that an image's config names. Raises NotAnArchive."""
    _check_values(config, "config")
    try:
        return _Config.model_validate_json(config).rootfs.diff_ids or ()
    except ValidationError as error:
        raise NotAnArchive(f"its config is unusable: {_explain(error)}") from None


def _check_values(document: bytes, what: str) -> None:
    if document.count(b",") > _MAX_VALUES:
        raise NotAnArchive(f"its {what} has more than {_MAX_VALUES} values")


def _explain(error: ValidationError) -> str:
    """Name the first bad place and what is wrong with it, without quoting what the archive has."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))[:100]
    return f"{place}: {first['msg'][:200]}" if place else first["msg"][:200]
