"""Defines what a store of images promises, on one page.

An image is named by its hash and exists only when it is whole and verified. An image that is still being received is a
*partial*: it has one appender and any number of readers, and it is either published (it gets its name) or stays behind
to be resumed.
"""

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor
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
    """Whether `BlobStore.probe` shows when the failure is over."""


class Corrupt(Exception):
    """The bytes received are not the image that was promised; the message says what was expected and what came."""

    def __init__(self, expected: str, received: str) -> None:
        super().__init__(f"expected sha256 {expected}, received {received}")


class Unnamed(OSError):
    """The bytes are right, and safe on the disk, but the image cannot get its name.

    The bytes stay for another attempt.
    """


class Lost(Exception):
    """The journal that this process followed has gone without becoming the image: another process removed it."""


class Cut(Exception):
    """A reader cannot be given the bytes that follow, so its client must see the download fail."""


def check_good(file: SharedFile, *, surely: bool = False) -> None:
    """Raise Cut when the file's bytes must not be sent any more; see `SharedFile.recalled` for `surely`."""
    if file.recalled(surely=surely):
        raise Cut("the image was found bad, or removed by force, while it was sent")


class FellBehind(Cut):
    """A reader was too slow for a journal that keeps only the latest bytes."""


class Body(Protocol):
    """What can be sent to a client: a stored image, or one that is still arriving."""

    @property
    def metadata(self) -> ImageMetadata:
        """The metadata of what is being sent; its `size` in bytes and its `hash` are the body's length and ETag."""

    async def available(self, offset: int) -> int:
        """Wait until the byte at `offset` may be sent; return how far bytes may be sent now (exclusive).

        Returns at once when that byte is in no file, or will no longer be in one; see `file_at`. Raises FillFailed when
        the transfer failed: then nothing more may be sent, and the client must see the download fail.
        """

    def file_at(self, offset: int) -> SharedFile | None:
        """Return where the bytes from `offset` are, as far as `available` allows; None when they come from `pieces`."""

    def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield the bytes [start, stop) as they become available, for bytes that are in no file."""


@runtime_checkable
class Remote(Body, Protocol):
    """A body whose bytes are fetched for one reader, from a place that may fail to deliver them."""

    async def ready(self, start: int, stop: int) -> None:
        """Fetch the first of the bytes [start, stop) in advance, for `pieces`. Raises StoreUnavailable, Cut."""

    async def close(self) -> None:
        """Release what was fetched in advance: its reader has left."""


class BlockingReader(Protocol):
    """Makes the bytes of a `Readable`, in order. For one thread at a time."""

    def check(self) -> None:
        """Raise Cut when nothing of it may be sent any more. Does not block."""

    def readinto(self, into: memoryview) -> int:
        """Fill `into` with what comes next; return how many bytes, fewer only at the end. Blocks. Raises Cut, OSError.

        What it has filled may be sent.
        """


@runtime_checkable
class Readable(Body, Protocol):
    """A body whose bytes are in no file, and are made by threads that block while they do it."""

    @property
    def executor(self) -> Executor:
        """The threads."""

    def reader(self, start: int, stop: int) -> BlockingReader:
        """Return what makes the bytes [start, stop)."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class StoredImage:
    """A whole, verified image: a `Body` whose bytes are all available."""

    metadata: ImageMetadata
    file: SharedFile

    async def available(self, offset: int) -> int:
        """Return the size: all bytes are available at once."""
        return self.metadata.size

    def file_at(self, offset: int) -> SharedFile | None:
        """See `Body.file_at`."""
        return self.file

    async def pieces(self, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """See `Body.pieces`: there are none, since all bytes are in the file."""
        nothing: tuple[bytes, ...] = ()
        for piece in nothing:
            yield piece


@dataclass(frozen=True, slots=True)
class StoredInfo:
    """One line of the list of stored images.

    `verified_at` is None when the file is not the one that was verified. `places` says where the image is: disk,
    bucket.
    """

    metadata: ImageMetadata
    stored_at: datetime
    last_served_at: datetime | None
    pinned: bool
    verified_at: datetime | None = None
    places: tuple[str, ...] = ("disk",)


def newest_first(images: Iterable[StoredInfo]) -> Sequence[StoredInfo]:
    """Sort images as every list shows them: newest first by `created`, then by `stored_at`, then by hash."""
    by_hash = sorted(images, key=lambda info: info.metadata.hash)
    return sorted(by_hash, key=lambda info: (info.metadata.created, info.stored_at), reverse=True)


class Retention(Protocol):
    """Decides which of the given images may be evicted, and in which order (see `mirror.images.retention`)."""

    def __call__(
        self, images: Sequence[StoredInfo], current: str | None, read: Collection[str]
    ) -> Sequence[StoredInfo]:
        """Return those that may be evicted, the first to go first; `current` and `read` (being read) are hashes."""


class Partial(Protocol):
    """The journal of one fill: the bytes received so far, in order, until they get their name.

    It is append-only and has one appender. `position` counts the bytes that are appended *and* digested; readers may
    read `file` up to there. A journal without a file is a `mirror.store.memory.MemoryWindow`. While it is not `ours`,
    another process appends to it.
    """

    @property
    def position(self) -> int:
        """The number of bytes that are appended and digested."""

    @property
    def validator(self) -> str | None:
        """Upstream's validator (a strong ETag), for `If-Range`."""

    @property
    def file(self) -> SharedFile | None:
        """Where the bytes are."""

    @property
    def ours(self) -> bool:
        """Whether this process is the one that appends."""

    @property
    def published(self) -> bool:
        """Whether the process that we followed has published the image."""

    def reader(self, offset: int) -> AbstractAsyncContextManager["Reader"]:
        """Return a reader that reads along from `offset`, when there is no file."""

    async def recover(self) -> bool:
        """Take over one more part of what other processes left, and move `position`; True while there is more to come.

        While another process appends, follow it; when it has let go, digest what is there. In the end the journal is
        ours, or the other process has published it. Raises Lost.
        """

    async def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write and digest `pieces` in order. After an error (OSError), nothing is left beyond `position`."""

    def digest(self) -> "hashlib._Hash":
        """Return a copy of the SHA-256 of the bytes up to `position`."""

    async def remember(self, validator: str | None) -> None:
        """Keep upstream's validator (a strong ETag) durably beside the bytes, for `If-Range` after a restart."""

    async def publish(self) -> None:
        """Verify hash and size, make the bytes durable, and give the image its name.

        If any of that fails, it gets no name.
        """

    async def quarantine(self) -> None:
        """Set wrong bytes aside, where nothing serves them, for a person to look at."""

    async def discard(self) -> None:
        """Remove the journal, whose bytes are of no more use."""

    async def close(self) -> None:
        """Let go of the journal as it is: published, removed, or left for the next fill to resume."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a fill works with: the journal that it writes, and the source that it reads."""

    journal: Partial
    source: Source


class Reader(Protocol):
    """A client that reads along in a journal without a file."""

    async def take(self, stop: int) -> bytes:
        """Take the next bytes, at least one and none beyond `stop`; they must be there already. Raises Cut."""


class BlobStore(Protocol):
    """A store of images."""

    async def open(self, image_hash: str) -> Body | None:
        """Return the stored image of that hash, ready to be sent, or None. Raises StoreUnavailable."""

    async def has(self, image_hash: str) -> bool:
        """Return whether clients can get that whole image without waiting for upstream. Raises StoreUnavailable."""

    async def probe(self) -> None:
        """Try to write. Raises StoreUnavailable when that fails."""

    async def begin(self, metadata: ImageMetadata, upstream: Source) -> Transfer | Body:
        """Begin, resume or follow the journal of an image, after making sure that there is room for the whole image.

        The fill reads from `upstream`, or from somewhere nearer if this store has the bytes. Returns the image itself
        when another process has stored it in the meantime. Raises StoreUnavailable (no room, or the store does not
        work).
        """

    def nearest(self, metadata: ImageMetadata, upstream: Source) -> Source:
        """Return where a fill that stores nothing gets its bytes: `upstream`, or somewhere nearer that has them."""

    async def ahead(self, image_hash: str, published: Callable[[], Awaitable[None]]) -> Remote | None:
        """Return the image that a running fill reads from, for a reader that would otherwise have to wait for the fill.

        None when the whole image is not there. Its last bytes are held back until `published` returns; if the fill
        fails, that raises FillFailed. Raises StoreUnavailable.
        """

    async def make_room(self, wanted: int) -> bool:
        """Try to free that many bytes for a fill that found the store full; return whether there is room now."""

    async def list(self) -> Sequence[StoredInfo]:
        """Return every stored image, sorted by `newest_first`."""

    async def served(self, image_hash: str) -> None:
        """Note that the image is being served now, if it is stored. A failure to write the note is ignored."""
