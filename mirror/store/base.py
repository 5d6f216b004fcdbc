"""Defines what a store of images promises, on one page.

An image is named by its hash and exists only when it is whole and verified. What is being received is a *partial*: it
has one appender, any number of readers, and either gets its name (published) or stays behind to be resumed.
"""

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from mirror.model.errors import Unavailable
from mirror.model.metadata import ImageMetadata
from mirror.model.source import Source
from mirror.store.shared_file import SharedFile


class StoreUnavailable(Unavailable):
    """The store cannot take or give bytes now (full, read-only, failing, busy); the message says which, for clients."""

    passes = False
    """Whether `BlobStore.probe` shows when it is over."""


class Corrupt(Exception):
    """The bytes received are not the image that was promised; says what was expected and what came."""

    def __init__(self, expected: str, received: str) -> None:
        super().__init__(f"expected sha256 {expected}, received {received}")


class Unnamed(OSError):
    """The bytes are right, and safe on the disk, but the image cannot get its name. They stay, for another attempt."""


class Lost(Exception):
    """The journal that was followed is gone, and did not become the image: another process put it away."""


class Cut(Exception):
    """A reader cannot be given what follows; its client must notice."""


class FellBehind(Cut):
    """A reader was too slow for a journal that keeps only what came last."""


class Body(Protocol):
    """What can be sent to a client: a stored image, or one that is still arriving."""

    @property
    def metadata(self) -> ImageMetadata:
        """What is being sent; its `size` in bytes and its `hash` are the body's length and ETag."""

    async def available(self, offset: int) -> int:
        """Wait until the byte at `offset` may be sent; return how far bytes may be sent now (exclusive).

        Returns at once when that byte is in no file, or will not be any more; see `file_at`. Raises FillFailed when the
        transfer was lost: then nothing more may be sent and the client must notice.
        """

    def file_at(self, offset: int) -> SharedFile | None:
        """Where the bytes from `offset` are, as far as `available` allows; None when they come from `pieces`."""

    def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Give the bytes [start, stop) one after another, as they become available: those that are in no file.

        Raises FillFailed, or Cut.
        """


@runtime_checkable
class Remote(Body, Protocol):
    """A body whose bytes are fetched for one reader, from a place that may fail to give them."""

    async def ready(self, start: int, stop: int) -> None:
        """Have the first of the bytes [start, stop) at hand, for `pieces`. Raises StoreUnavailable, Cut."""

    async def close(self) -> None:
        """Let go of what was at hand: its reader has left."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class StoredImage:
    """A whole, verified image: a `Body` of which everything is available."""

    metadata: ImageMetadata
    file: SharedFile

    async def available(self, offset: int) -> int:
        """All bytes, at once."""
        return self.metadata.size

    def file_at(self, offset: int) -> SharedFile | None:
        """See `Body.file_at`."""
        return self.file

    async def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """See `Body.pieces`: there are none."""
        nothing: tuple[bytes, ...] = ()
        for piece in nothing:
            yield piece


@dataclass(frozen=True, slots=True)
class StoredInfo:
    """A line of the list of stored images. `verified_at` is None when the file is not the one that was verified.

    `places` are where it is: disk, bucket.
    """

    metadata: ImageMetadata
    stored_at: datetime
    last_served_at: datetime | None
    pinned: bool
    verified_at: datetime | None = None
    places: tuple[str, ...] = ("disk",)


def newest_first(images: Iterable[StoredInfo]) -> Sequence[StoredInfo]:
    """Sort as every list does: newest first by `created`, then by `stored_at`, then by hash."""
    by_hash = sorted(images, key=lambda info: info.metadata.hash)
    return sorted(by_hash, key=lambda info: (info.metadata.created, info.stored_at), reverse=True)


class Retention(Protocol):
    """Says which of some images may be evicted, the first to go first (see `mirror.images.retention`)."""

    def __call__(
        self, images: Sequence[StoredInfo], current: str | None, read: Collection[str]
    ) -> Sequence[StoredInfo]:
        """`current` and what is being `read` are hashes."""


class Partial(Protocol):
    """The journal of one fill: received bytes, in order, until they have a name. Append-only; one appender.

    `position` counts the bytes that are appended *and* digested; readers may look at `file` up to there. A journal
    without a file is a `mirror.store.memory.MemoryWindow`. While it is not `ours` another process appends to it.
    """

    @property
    def position(self) -> int:
        """Bytes that are appended and digested."""

    @property
    def validator(self) -> str | None:
        """Upstream's validator (a strong ETag), for `If-Range`."""

    @property
    def file(self) -> SharedFile | None:
        """Where the bytes are."""

    @property
    def ours(self) -> bool:
        """Whether this process appends."""

    @property
    def published(self) -> bool:
        """Whether the process that we followed has published it."""

    def reader(self, offset: int) -> AbstractAsyncContextManager["Reader"]:
        """Read along from `offset`, when there is no file."""

    async def recover(self) -> bool:
        """Take up a further part of what other processes left, and move `position`; True while there is more to come.

        While another process appends, follow it; when it let go, digest what is there. In the end the journal is ours,
        or the other process published it. Raises Lost.
        """

    async def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write and digest `pieces` in order. After an error (OSError) nothing is left beyond `position`."""

    def digest(self) -> "hashlib._Hash":
        """Return a copy of the SHA-256 of the bytes up to `position`."""

    async def remember(self, validator: str | None) -> None:
        """Keep upstream's validator (a strong ETag) durably beside the bytes, for `If-Range` after a restart."""

    async def publish(self) -> None:
        """Verify hash and size, make durable, give the image its name. Otherwise it names nothing.

        Raises Corrupt; Unnamed when only the name cannot be given; another OSError when bytes may be lost.
        """

    async def quarantine(self) -> None:
        """Set wrong bytes aside, where nothing serves them, for a person to look at."""

    async def discard(self) -> None:
        """Remove the journal: its bytes are of no use to anybody."""

    async def close(self) -> None:
        """Let go of the journal as it is: published, put away, or to be resumed by the next fill."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a fill works with: the journal that it writes, and the source that it reads."""

    journal: Partial
    source: Source


class Reader(Protocol):
    """A client that reads along in a journal without a file."""

    async def take(self, stop: int) -> bytes:
        """Take the next bytes, at least one, up to `stop` at most; they are there. Raises Cut."""


class BlobStore(Protocol):
    """A store of images."""

    async def open(self, image_hash: str) -> Body | None:
        """Return the stored image of that hash, ready to be sent; None when there is none. Raises StoreUnavailable."""

    async def has(self, image_hash: str) -> bool:
        """Whether clients need not wait for upstream to get that image whole. Raises StoreUnavailable."""

    async def probe(self) -> None:
        """Try to write. Raises StoreUnavailable when that fails."""

    async def begin(self, metadata: ImageMetadata, upstream: Source) -> Transfer | Body:
        """Begin, resume or follow the journal of an image, having made sure there is room for all of it.

        Its source is `upstream`, or where the store has the bytes nearer. Returns the image itself when another process
        has stored it meanwhile. Raises StoreUnavailable (no room, no store).
        """

    def nearest(self, metadata: ImageMetadata, upstream: Source) -> Source:
        """Return where a fill that stores nothing gets its bytes: `upstream`, or where the store has them nearer."""

    async def ahead(self, image_hash: str, published: Callable[[], Awaitable[None]]) -> Remote | None:
        """Return the image from where a running fill gets its bytes, for a reader that would have to wait for the fill.

        None when it does not lie there whole. Its last bytes wait until `published` returns; that raises FillFailed.
        Raises StoreUnavailable.
        """

    async def make_room(self, wanted: int) -> bool:
        """Try to free that many bytes for a fill that found the store full; return whether there is room now."""

    async def list(self) -> Sequence[StoredInfo]:
        """Return every stored image, as `newest_first` puts them."""

    async def served(self, image_hash: str) -> None:
        """Note that the image was served now, if it is stored. Best effort: a store that cannot write is no error."""
