"""Defines the bundle that crosses an air gap: a directory that a person can check, join and load with everyday tools.

    <image>, or <image>.001, .002 and so on    the bytes, whole or in volumes
    metadata.json                              upstream's body
    README.txt                                 what a person does with all this (see `mirror.bundle.readme`)
    SHA256SUMS                                 of all of these, as GNU coreutils write and read it
    SHA256SUMS.sig                             its signature, when it was signed (see `mirror.bundle.signatures`)

This module knows names and what they mean; it reads and writes nothing. A name that comes from elsewhere (upstream's
`filename`, a line of SHA256SUMS) is never a path: it has no separator, no blank, nothing that FAT, a shell or a
terminal takes amiss.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mirror.common.units import GIB, format_size, parse_size
from mirror.model.errors import MirrorError, UsageError
from mirror.model.metadata import ImageMetadata

METADATA = "metadata.json"
LEAFLET = "README.txt"
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"

FAT32 = 4 * GIB - 1
"""Bytes of the largest file on FAT32, which is what most sticks are formatted with."""

MOST_VOLUMES = 999
"""What three digits can number, so that a shell's `*` has them in order."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_VOLUME = re.compile(r"(.+)\.([0-9]{3})")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)


class BadBundle(MirrorError):
    """A bundle is not whole, or was altered; the message says which part of it, and why."""


@dataclass(frozen=True, slots=True)
class Volume:
    """The bytes [start, stop) of the image, under a name of their own."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of SHA256SUMS."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Sums:
    """The content of SHA256SUMS: the image's `volumes` in order (one if it was not split), and the other files."""

    volumes: Sequence[Listed]
    metadata: str
    leaflet: str | None

    @classmethod
    def parse(cls, raw: bytes) -> "Sums":
        """Read SHA256SUMS, also as an editor leaves it: CR LF, capitals, empty lines, a byte order mark before UTF-8.

        Raises BadBundle when it is malformed, or names anything that a bundle does not hold.
        """
        try:
            lines = raw.removeprefix(codecs.BOM_UTF8).decode("ascii").splitlines()
        except UnicodeDecodeError:
            utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            why = "an editor has saved it as UTF-16: save it as UTF-8" if utf16 else "it is not plain text"
            raise BadBundle(f"{SUMS} is not what sha256sum writes: {why}") from None
        listed: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            match = _LINE.fullmatch(line)
            if match is None or not is_name(match[2]):
                raise BadBundle(f"{SUMS}, line {number}: expected a sha256 and the plain name of a file beside it")
            if match[2] in listed:
                raise BadBundle(f"{SUMS} names {match[2]} twice")
            listed[match[2]] = match[1].lower()
        if METADATA not in listed:
            raise BadBundle(f"{SUMS} does not name {METADATA}")
        metadata, leaflet = listed.pop(METADATA), listed.pop(LEAFLET, None)
        if missing := lacking(listed):
            raise BadBundle(f"{SUMS} does not name {missing[0]}")
        return cls([Listed(name, listed[name]) for name in in_order(listed)], metadata, leaflet)


def write_sums(files: Sequence[Listed]) -> bytes:
    """Return the text of SHA256SUMS as `sha256sum -b` writes it."""
    return "".join(f"{file.sha256} *{file.name}\n" for file in files).encode()


def is_name(text: str) -> bool:
    """Return whether `text` may be the name of a file of a bundle."""
    return _NAME.fullmatch(text) is not None


def image_name(metadata: ImageMetadata) -> str:
    """Return the image's name in a bundle: upstream's, made safe for every file system and shell."""
    last = re.split(r"[/\\]", metadata.filename)[-1]
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", last).lstrip("._+-").rstrip(".")[-120:].lstrip("._+-")
    taken = name.lower() in {METADATA.lower(), LEAFLET.lower(), SUMS.lower(), SIGNATURE.lower()}
    if not name or taken or _DEVICE.match(name):
        return f"{metadata.hash[:12]}.tar.gz"
    return name


def directory_name(metadata: ImageMetadata) -> str:
    """Return the name of a bundle's directory: it sorts by date, and differs for each image."""
    return f"pps-{metadata.created:%Y-%m-%d}-{metadata.hash[:12]}"


def parse_split(text: str) -> int:
    """Return the largest size of a volume, as a person wrote it; 4GiB becomes what FAT32 takes. Raises UsageError."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"--split {text}: {error}") from None
    if not size:
        raise UsageError("--split 0: a volume needs a byte at least")
    return FAT32 if size == FAT32 + 1 else size


def volumes(metadata: ImageMetadata, split: int | None) -> Sequence[Volume]:
    """Divide the image into volumes of `split` bytes at most; one, without a number, when that is not needed.

    Raises UsageError when they would be too many.
    """
    name, size = image_name(metadata), metadata.size
    if split is None or size <= split:
        return [Volume(name, 0, size)]
    count = -(-size // split)
    if count > MOST_VOLUMES:
        raise UsageError(
            f"--split {split} makes {count} volumes of this image ({format_size(size)}), and {MOST_VOLUMES} are "
            "allowed: make them larger"
        )
    return [
        Volume(f"{name}.{number:03}", start, min(start + split, size))
        for number, start in enumerate(range(0, size, split), 1)
    ]


def is_ours(name: str, metadata: ImageMetadata, ending: str) -> bool:
    """Whether an export of this image, split in whatever way, names a file so, with or without that ending."""
    stem = name.removesuffix(ending)
    match = _VOLUME.fullmatch(stem)
    return image_name(metadata) in {stem, match[1] if match else stem}


def in_order(names: Sequence[str] | dict[str, str]) -> Sequence[str]:
    """Return an image's volumes from the first to the last. Raises BadBundle when they are not of one image."""
    if len(names) == 1:
        return list(names)
    matches = [_VOLUME.fullmatch(name) for name in names]
    if not names or not all(matches) or len({match[1] for match in matches if match}) > 1:
        said = ", ".join(sorted(names)[:4]) or "nothing"
        raise BadBundle(f"expected one image or the volumes of one (.001, .002 and so on), found {said}")
    return sorted(names)


def lacking(names: Sequence[str] | dict[str, str]) -> Sequence[str]:
    """Return the names of volumes that are missing between the first and the last one."""
    there = set(names)
    order = in_order(names)
    last = _VOLUME.fullmatch(order[-1])
    if last is None or len(order) == 1:
        return []
    return [name for number in range(1, int(last[2])) if (name := f"{last[1]}.{number:03}") not in there]
