"""Decides which of the mirrors that share a bucket fetches an image: at most one, if the server supports conditions.

`leases/<hash>` is written only when no other mirror was first. It stays valid for some seconds by the server's clock,
or until its holder is known to be dead, which processes of one store can see (`mirror.store.s3.live_processes`). It
also says how far its holder is, so that the others can read along. A lease saves traffic and decides nothing about
bytes: a holder that has lost it without knowing does no harm.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby

from mirror.store.s3.bucket import Bucket
from mirror.store.s3.errors import BucketFailed
from mirror.store.s3.live_processes import Processes
from mirror.store.s3.objects import ConditionFailed, NotSupported


class LeaseLost(Exception):
    """Another mirror has taken the lease over."""


@dataclass(frozen=True, slots=True)
class LeaseNote:
    """What the holder reports about its fill. `fill` is its id; `position` bytes are in parts of `part_size` bytes.

    `owners` are the ids of the fills that wrote the parts up to there, by number. `validator` is upstream's, for the
    mirror that goes on. The lease is free when it was `released`, or when the fill `failed`, which says why its parts
    are worthless. `holder` is the process that holds it, for those that can see whether it lives; `size` is the image's
    size in bytes.
    """

    fill: str
    part_size: int
    position: int = 0
    owners: tuple[str, ...] = ()
    validator: str | None = None
    released: bool = False
    failed: str | None = None
    holder: str | None = None
    size: int = 0

    def encode(self) -> bytes:
        """Return it as JSON, with owners as runs."""
        runs = [[owner, len(list(run))] for owner, run in groupby(self.owners)]
        fields = {
            "fill": self.fill,
            "partSize": self.part_size,
            "position": self.position,
            "parts": runs,
            "validator": self.validator,
            "released": self.released,
            "failed": self.failed,
            "holder": self.holder,
            "size": self.size,
        }
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, data: bytes) -> "LeaseNote | None":
        """Parse it; return None when it is no such note."""
        try:
            fields = json.loads(data)
            note = cls(
                fill=_identifier(fields["fill"]),
                part_size=int(fields["partSize"]),
                position=int(fields["position"]),
                owners=_expand(fields["parts"]),
                validator=None if fields["validator"] is None else str(fields["validator"]),
                released=bool(fields["released"]),
                failed=None if fields["failed"] is None else str(fields["failed"]),
                holder=None if fields.get("holder") is None else _identifier(fields["holder"]),
                size=max(0, int(fields.get("size", 0))),
            )
        except (ValueError, KeyError, TypeError):
            return None
        return note if note.part_size > 0 and 0 <= note.position <= len(note.owners) * note.part_size else None


@dataclass(frozen=True, slots=True)
class Held:
    """The lease as it was found: what its holder says (None if unreadable), and its ETag.

    `over` when it was not renewed in time, or its holder is known to be dead.
    """

    note: LeaseNote | None
    etag: str
    over: bool = False

    @property
    def free(self) -> bool:
        """Return whether it may be taken over."""
        return self.over or self.note is None or self.note.released or self.note.failed is not None


class Lease:
    """The lease of one image, as seen by one of the `processes` of a store."""

    def __init__(self, bucket: Bucket, image_hash: str, processes: Processes) -> None:
        self.timings = bucket.timings
        self._bucket = bucket
        self._processes = processes
        self._name = f"leases/{image_hash}"
        self._etag: str | None = None
        self._fill: str | None = None

    async def look(self) -> Held | None:
        """Return the lease as it is; None when nobody has it. Raises BucketFailed."""
        if (answer := await self._bucket.get(self._name)) is None:
            return None
        age = (answer.now - answer.version.modified).total_seconds()
        note = LeaseNote.decode(answer.data)
        dead = note is not None and note.holder is not None and await self._processes.has_died(note.holder)
        return Held(note, answer.version.etag, dead or age > self.timings.lease)

    async def take(self, note: LeaseNote, over: Held | None) -> bool:
        """Take the lease if there is none, or it is still as it was found `over`; False when another was first."""
        note = replace(note, holder=await self._processes.ours())
        self._fill = note.fill
        try:
            if over is None:
                self._etag = await self._bucket.put(self._name, note.encode(), if_absent=True)
            else:
                self._etag = await self._bucket.put(self._name, note.encode(), if_etag=over.etag)
        except ConditionFailed:
            held = await self._ours()
            self._etag = held.etag if held is not None else None
            return held is not None
        except NotSupported as error:  # conditions worked when they were tried, and will be tried again
            raise BucketFailed(f"the bucket {self._bucket.name} has no conditional writes any more") from error
        return True

    async def renew(self, note: LeaseNote) -> None:
        """Write how far we are, which renews the lease. Raises LeaseLost, BucketFailed."""
        if self._etag is None:
            raise LeaseLost
        data = replace(note, holder=await self._processes.ours()).encode()
        try:
            self._etag = await self._bucket.put(self._name, data, if_etag=self._etag)
        except ConditionFailed:
            if (held := await self._ours()) is None:
                self._etag = None
                raise LeaseLost from None
            await self._renew_over(held, data)
        except NotSupported:
            raise LeaseLost from None

    async def _renew_over(self, held: Held, data: bytes) -> None:
        try:
            self._etag = await self._bucket.put(self._name, data, if_etag=held.etag)
        except ConditionFailed:
            self._etag = None
            raise LeaseLost from None

    async def _ours(self) -> Held | None:
        """Return the lease if it is ours: it is, even when the answer to our write was lost or not waited for."""
        held = await self.look()
        return held if held is not None and held.note is not None and held.note.fill == self._fill else None

    async def remove(self) -> None:
        """Remove the lease, if we hold it: there is nothing to fetch any more. Raises BucketFailed."""
        if self._etag is None:
            return
        etag, self._etag = self._etag, None
        try:
            await self._bucket.delete(self._name, if_etag=etag)
        except ConditionFailed:
            if held := await self._ours():
                with suppress(ConditionFailed):
                    await self._bucket.delete(self._name, if_etag=held.etag)


def _expand(runs: Sequence[Sequence[object]]) -> tuple[str, ...]:
    owners: list[str] = []
    for owner, count in runs:
        if not isinstance(count, int) or not 0 <= count <= 10_000 - len(owners):
            raise ValueError("no such number of parts")
        owners += [_identifier(owner)] * count
    return tuple(owners)


def _identifier(text: object) -> str:
    """Return the id of a fill, which becomes part of keys."""
    if not isinstance(text, str) or not text.isascii() or not text.isalnum() or len(text) > 64:
        raise ValueError("no id of a fill")
    return text
