"""Finds the image among the members of an archive, and checks that all of it is what its names and its config say."""

import posixpath
import re
from collections.abc import Callable, Sequence

from mirror.registry.documents import Entry, diff_ids, entries
from mirror.registry.index import (
    CONFIG_TYPE,
    LAYER_TYPE,
    MAX_DOCUMENT,
    ArchiveIndex,
    Blob,
    NotAnArchive,
    digest_of,
    make_manifest,
)
from mirror.registry.member_digest import Digested
from mirror.registry.seek_index import SeekIndex
from mirror.registry.tar import Kind, Member
from mirror.registry.wrapping import wrapped_size

_HOPS = 40
"""Links followed at most, as Linux does."""

_MAX_LAYERS = 1000
"""docker itself takes 127."""

_MAX_IMAGES = 1000
"""Images in one archive."""

_NAMED_BY_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})(?:\.tar|\.tar\.gz|\.json)?")

MANIFEST = "manifest.json"


def normal(name: str) -> str | None:
    """Return the name of a member as others are compared with it; None when it leads out of the archive."""
    short = posixpath.normpath(name)
    return None if short.startswith(("/", "../")) or short in ("..", ".") or "\0" in short else short


class Contents:
    """The members of an archive by name, as `add` is told of them."""

    def __init__(self) -> None:
        self._members: dict[str, Member | Digested] = {}
        self._ambiguous: set[str] = set()

    def add(self, found: Member | Digested) -> None:
        """Note a member: one with data, after that was digested, or another."""
        if (name := normal(_member(found).name)) is None:
            return
        before = self._members.get(name)
        if before is not None and not _same(before, found):
            self._ambiguous.add(name)
        self._members[name] = found

    def index(
        self, manifest: bytes | None, wanted: str | None, seek: SeekIndex | None, read: Callable[[Member], bytes]
    ) -> ArchiveIndex:
        """Return what a registry serves: of several images the one with the id `wanted`, else the first.

        `read` returns the data of a member. Raises NotAnArchive.
        """
        if manifest is None or MANIFEST in self._ambiguous:
            raise NotAnArchive(f"it has {'no' if manifest is None else 'more than one'} manifest.json")
        entry, warnings = self._choose(entries(manifest), wanted)
        config = self._file(entry.Config, "config")
        if config.member.size > MAX_DOCUMENT:
            raise NotAnArchive(f"its config has {config.member.size} bytes")
        layers = self._layers(entry, diff_ids(read(config.member)))
        blob = Blob(
            f"sha256:{config.sha256}", config.member.size, CONFIG_TYPE, config.member.offset, config.member.size
        )
        made = make_manifest(blob, layers)
        return ArchiveIndex(
            manifest=made,
            manifest_digest=digest_of(made),
            config=blob,
            layers=tuple(layers),
            repo_tags=tuple(entry.RepoTags or ()),
            warnings=tuple(warnings),
            seek=seek,
        )

    def _choose(self, images: Sequence[Entry], wanted: str | None) -> tuple[Entry, Sequence[str]]:
        if len(images) > _MAX_IMAGES:
            raise NotAnArchive(f"it has {len(images)} images; at most {_MAX_IMAGES} are looked at")
        if wanted is None:
            return images[0], ()
        for entry in images:
            try:
                if self._file(entry.Config, "config").sha256 == wanted:
                    return entry, ()
            except NotAnArchive:
                continue
        return images[0], [f"no image in the archive has the id sha256:{wanted} that upstream gives"]

    def _layers(self, entry: Entry, wanted: Sequence[str]) -> Sequence[Blob]:
        if len(entry.Layers) > _MAX_LAYERS:
            raise NotAnArchive(f"it has {len(entry.Layers)} layers; at most {_MAX_LAYERS} are served")
        if len(entry.Layers) != len(wanted):
            raise NotAnArchive(f"it has {len(entry.Layers)} layers, and its config names {len(wanted)}")
        return [
            self._layer(self._file(name, "layer"), name, diff_id)
            for name, diff_id in zip(entry.Layers, wanted, strict=True)
        ]

    def _layer(self, found: Digested, name: str, diff_id: str) -> Blob:
        if found.problem:
            raise NotAnArchive(f"its layer {_quoted(name)} cannot be used: {found.problem}")
        if f"sha256:{found.diff_id}" != diff_id:
            raise NotAnArchive(f"its layer {_quoted(name)} is not the one that its config names")
        offset, length = found.member.offset, found.member.size
        if found.wrapped is None:
            return Blob(f"sha256:{found.sha256}", length, LAYER_TYPE, offset, length)
        return Blob(f"sha256:{found.wrapped}", wrapped_size(length), LAYER_TYPE, offset, length, found.crc32)

    def _file(self, name: str, what: str) -> Digested:
        """Return the file of that name, or to which a link of that name leads. Raises NotAnArchive."""
        target = name
        for _ in range(_HOPS):
            if (place := normal(target)) is None:
                raise NotAnArchive(f"its {what} {_quoted(name)} leads out of it")
            found = self._members.get(place)
            if found is None:
                raise NotAnArchive(f"its {what} {_quoted(name)} is missing")
            if place in self._ambiguous:
                raise NotAnArchive(f"it has more than one {what} {_quoted(name)}")
            if isinstance(found, Digested):
                return self._checked(found, what)
            match found.kind:
                case Kind.SYMLINK:
                    target = posixpath.join(posixpath.dirname(place), found.target)
                case Kind.LINK:
                    target = found.target
                case _:
                    sparse = "a sparse file" if found.kind is Kind.SPARSE else "no file"
                    raise NotAnArchive(f"its {what} {_quoted(name)} is {sparse}")
        raise NotAnArchive(f"its {what} {_quoted(name)} is a link that never ends")

    @staticmethod
    def _checked(found: Digested, what: str) -> Digested:
        named = _NAMED_BY_HASH.fullmatch(posixpath.basename(found.member.name))
        if named and named[1] not in (found.sha256, found.diff_id):
            raise NotAnArchive(f"its {what} {_quoted(found.member.name)} does not have the hash that it is named by")
        return found


def _member(found: Member | Digested) -> Member:
    return found.member if isinstance(found, Digested) else found


def _same(one: Member | Digested, other: Member | Digested) -> bool:
    if isinstance(one, Digested) and isinstance(other, Digested):
        return one.sha256 == other.sha256
    return (
        isinstance(one, Member) and isinstance(other, Member) and (one.kind, one.target) == (other.kind, other.target)
    )


def _quoted(name: str) -> str:
    return ascii(name if len(name) <= 150 else f"{name[:150]}...")
