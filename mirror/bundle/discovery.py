"""Finds what was carried here, at the paths that a person named: a bundle, on one medium or several, or a lone image.

Volumes may be anywhere, in any order, and more than once: one good copy of each is enough. The small files that
describe them (SHA256SUMS, its signature, metadata) are read and checked before anything large. All of it blocks, and
raises BadBundle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mirror.bundle import signatures
from mirror.bundle.format import LEAFLET, METADATA, SIGNATURE, SUMS, BadBundle, Sums, in_order, lacking
from mirror.bundle.medium import read_small
from mirror.model.errors import UsageError
from mirror.model.metadata import MAX_BODY, ImageMetadata, UnusableMetadata

MAX_SUMS = 1 << 20
MAX_SIGNATURE = 64 << 10
"""Bytes that are read at most."""

BUNDLES = "pps-"
"""How the names of bundles' directories begin: one is found on a medium whose root was named."""


@dataclass(frozen=True, slots=True)
class Part:
    """A volume, or the whole image: its SHA-256, if that was carried along, and the paths of its copies."""

    name: str
    sha256: str | None
    copies: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Carried:
    """An image to be imported: its parts in order. `signer` is the name of the signer, if the signature was checked."""

    metadata: ImageMetadata
    parts: Sequence[Part]
    signer: str | None
    signed: bool


def find(paths: Sequence[Path], metadata: Path | None, trusted: Path | None) -> Carried:
    """Find the image at `paths`, with its metadata if that is not among them; signed by one of `trusted`, if given.

    Raises BadBundle, or UsageError when the paths are not what can be imported.
    """
    places = _Places(paths)
    if places.copies(SUMS):
        if metadata is not None:
            raise UsageError(f"--metadata is for an image without {SUMS}; this is a bundle, which has its own")
        return _bundle(places, trusted)
    if trusted is not None:
        raise BadBundle(f"it is not signed: there is no {SUMS}")
    if places.directories:
        raise BadBundle(f"{places.directories[0]} has no {SUMS}: it is no bundle, or its export was not finished")
    return _lone(places.files, metadata)


class _Places:
    """The places to look in: directories, and files that were named one by one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.directories: list[Path] = []
        self.files: list[Path] = []
        for path in paths:
            try:
                place = path.resolve(strict=True)
            except (OSError, RuntimeError) as error:  # the latter is how Python says that links lead in a circle
                reason = error.strerror if isinstance(error, OSError) else "its links lead in a circle"
                raise BadBundle(f"{path} cannot be read: {reason}") from None
            if place.is_dir():
                self.directories.append(_bundle_in(place))
            else:
                self.files.append(place)

    def copies(self, name: str) -> Sequence[Path]:
        """Return every file of that name, whatever kind of file it is."""
        found = [path for directory in self.directories if (path := directory / name).is_symlink() or path.exists()]
        return list(dict.fromkeys([*found, *(path for path in self.files if path.name == name)]))

    def small(self, name: str, most: int) -> bytes | None:
        """Return the content of the small file of that name; None when there is none. Copies must be equal."""
        copies = {path: read_small(path, most) for path in self.copies(name)}
        if len(set(copies.values())) > 1:
            first, second = list(copies)[:2]
            raise BadBundle(f"{first} and {second} differ: name what belongs to one bundle only")
        return next(iter(copies.values()), None)

    def right(self, name: str, digest: str, most: int) -> bytes | None:
        """Return the content of the file of that name with this SHA-256; None when there is no file of that name."""
        copies = [read_small(path, most) for path in self.copies(name)]
        for data in copies:
            if sha256(data).hexdigest() == digest:
                return data
        if copies:
            raise BadBundle(
                f"{name} is not the one that {SUMS} names: its sha256 is {sha256(copies[0]).hexdigest()}, "
                f"and should be {digest}"
            )
        return None


def _bundle_in(directory: Path) -> Path:
    """Return the directory itself, or that of the one bundle below it."""
    try:
        if (directory / SUMS).exists():
            return directory
        below = [path for path in directory.iterdir() if path.name.startswith(BUNDLES) and not path.is_symlink()]
        bundles = sorted(path for path in below if path.is_dir())
    except OSError as error:
        raise BadBundle(f"{directory} cannot be read: {error.strerror}") from None
    if len(bundles) > 1:
        raise BadBundle(f"{directory} has {len(bundles)} bundles, name one: {', '.join(each.name for each in bundles)}")
    return bundles[0] if bundles else directory


def _bundle(places: _Places, trusted: Path | None) -> Carried:
    raw = places.small(SUMS, MAX_SUMS)
    assert raw is not None  # noqa: S101 - the caller looked
    signer = None
    if trusted is not None:
        signature = places.small(SIGNATURE, MAX_SIGNATURE)
        if signature is None:
            raise BadBundle(f"it is not signed: there is no {SIGNATURE}")
        signer = signatures.verify(raw, signature, trusted)
    sums = Sums.parse(raw)
    body = places.right(METADATA, sums.metadata, MAX_BODY)
    if body is None:
        raise BadBundle(f"{METADATA} is missing: name every directory that has a part of the bundle")
    if sums.leaflet is not None:
        places.right(LEAFLET, sums.leaflet, MAX_BODY)
    metadata = _parsed(body, METADATA)
    if len(sums.volumes) == 1 and sums.volumes[0].sha256 != metadata.hash:
        raise BadBundle(f"{METADATA} is of another image ({metadata.hash}) than {sums.volumes[0].name} in {SUMS}")
    parts = [Part(volume.name, volume.sha256, places.copies(volume.name)) for volume in sums.volumes]
    if missing := [part.name for part in parts if not part.copies]:
        raise BadBundle(f"{_listed(missing)} missing: name every directory or file that has a part of the bundle")
    return Carried(metadata, parts, signer, signed=bool(places.copies(SIGNATURE)))


def _lone(files: Sequence[Path], metadata: Path | None) -> Carried:
    """Return an image or its volumes, whose only checksum is the one in the metadata."""
    described = [path for path in files if path.suffix.lower() == ".json"] if metadata is None else [metadata]
    images = [path for path in files if path not in described]
    if len(described) != 1 or not images:
        raise UsageError("expected a bundle, or an image with its metadata: import IMAGE metadata.json")
    parsed = _parsed(read_small(described[0].resolve(), MAX_BODY), described[0].name)
    copies: dict[str, list[Path]] = {}
    for path in images:
        copies.setdefault(path.name, []).append(path)
    if missing := lacking(list(copies)):
        raise BadBundle(f"{_listed(missing)} missing: name all volumes of the image")
    names = in_order(list(copies))
    digest = parsed.hash if len(names) == 1 else None
    return Carried(parsed, [Part(name, digest, copies[name]) for name in names], None, signed=False)


def _parsed(body: bytes, name: str) -> ImageMetadata:
    try:
        return ImageMetadata.parse(body)
    except UnusableMetadata as error:
        raise BadBundle(f"{name} cannot be used: {error.reason}") from None


def _listed(names: Sequence[str]) -> str:
    return f"{' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)} {'are' if names[1:] else 'is'}"
