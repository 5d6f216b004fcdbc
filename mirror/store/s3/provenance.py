"""Records where the bytes of a fill came from, as far as they were read in the bucket."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from mirror.store.s3.objects import Version


class WrittenPart(NamedTuple):
    """A part in the bucket: the id of the `fill` that wrote it, and its ETag."""

    fill: str
    etag: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """An immutable record of what was read: each method returns the next one.

    `version` is set while all bytes come from that version of the image's object. `read` names, by number, the fill
    that wrote each part we read from, whole or not. `whole` are the parts that an upload of ours can take over, because
    our digest went over all of their bytes.
    """

    version: Version | None = None
    read: Mapping[int, str] = field(default_factory=dict)
    whole: Mapping[int, WrittenPart] = field(default_factory=dict)

    def from_object(self, offset: int, version: Version) -> "Provenance":
        """Record that bytes come from the image's object, from `offset` on."""
        # If it continues where it broke, all our bytes still are of that version.
        return replace(self, version=version if offset == 0 or version == self.version else None)

    def from_elsewhere(self) -> "Provenance":
        """Record that bytes come from somewhere other than the image's object, or that no more bytes come."""
        return replace(self, version=None)

    def from_part(self, number: int, fill: str) -> "Provenance":
        """Record that bytes come from part `number`, which that fill wrote."""
        return replace(self, read={**self.read, number: fill})

    def with_whole(self, parts: Mapping[int, WrittenPart]) -> "Provenance":
        """Record that our digest has gone over all of these parts."""
        return replace(self, whole={**self.whole, **parts})

    def includes(self, fill: str) -> bool:
        """Whether bytes that this fill wrote were read."""
        return fill in self.read.values()

    def writer(self, number: int) -> str | None:
        """Return the id of the fill that wrote part `number`, if that part was read or written."""
        return self.whole[number].fill if number in self.whole else self.read.get(number)
