"""Digests the data of a member as it comes by, in each way in which it may turn out to be needed.

What a member is for is known only after `manifest.json`, which usually comes last.
"""

import hashlib
from dataclasses import dataclass

from mirror.registry.gzip_file import PIECE, Gunzip
from mirror.registry.inflater import BadGzip
from mirror.registry.tar import Member
from mirror.registry.tar_stream import Budget
from mirror.registry.wrapping import WrappingDigest

_GZIP = b"\x1f\x8b\x08"
"""What a layer in gzip begins with, as docker and containers/image know it (RFC 1952 section 2.3.1)."""


@dataclass(frozen=True, slots=True)
class Digested:
    """The SHA-256 of a member's data, in hex, as it is (`sha256`) and uncompressed (`diff_id`).

    Of plain data, `wrapped` is the SHA-256 of its wrapping and `crc32` goes into that. `problem` says why gzip data
    cannot be a layer.
    """

    member: Member
    sha256: str
    diff_id: str
    wrapped: str | None
    crc32: int | None
    problem: str | None


class MemberDigest:
    """Digests the data of `member`, which begins with `head`: HEAD bytes, or all if it has fewer."""

    HEAD = len(_GZIP)

    def __init__(self, member: Member, head: bytes, budget: Budget) -> None:
        self._member = member
        self._sha256 = hashlib.sha256()
        self._content = _Gzip(budget) if head == _GZIP else _Plain(member.size)
        self.update(memoryview(bytearray(head)))

    def update(self, piece: memoryview) -> None:
        """Take the piece that comes next. Raises NotAnArchive when it inflates to too much."""
        self._sha256.update(piece)
        self._content.update(piece)

    def finish(self) -> Digested:
        """Return what was found, after the last piece."""
        return self._content.finish(self._member, self._sha256.hexdigest())


class _Plain:
    def __init__(self, size: int) -> None:
        self._wrapping = WrappingDigest(size)

    def update(self, piece: memoryview) -> None:
        self._wrapping.update(piece)

    def finish(self, member: Member, sha256: str) -> Digested:
        return Digested(member, sha256, sha256, self._wrapping.hexdigest(), self._wrapping.crc32, None)


class _Gzip:
    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._gunzip = Gunzip()
        self._sha256 = hashlib.sha256()
        self._buffer = memoryview(bytearray(PIECE))
        self._problem: str | None = None

    def update(self, piece: memoryview) -> None:
        if self._problem:
            return
        self._gunzip.feed(piece)
        try:
            while count := self._gunzip.inflate(self._buffer):
                self._budget.spend(count)
                self._sha256.update(self._buffer[:count])
        except BadGzip as error:
            self._problem = f"its gzip is damaged: {error}"
        if self._gunzip.has_trailing:
            self._problem = "there are other bytes after its gzip"

    def finish(self, member: Member, sha256: str) -> Digested:
        problem = self._problem or (None if self._gunzip.is_whole else "its gzip is cut off")
        return Digested(member, sha256, self._sha256.hexdigest(), None, None, problem)
