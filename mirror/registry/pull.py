"""Finds the image that a tag or a digest means now. One that is not here yet is fetched; its client is told to wait."""

import asyncio
import math
import weakref
from dataclasses import dataclass

from mirror.common.units import format_duration
from mirror.images.fill import Fill
from mirror.images.fill_outcome import FillFailed, Reason
from mirror.images.library import Library
from mirror.images.metadata_cache import Current, MetadataCache
from mirror.model.caller import Caller
from mirror.model.errors import MirrorError, NotFound, UpstreamRefused
from mirror.model.metadata import ImageMetadata
from mirror.model.status import ArchiveState, Indexing
from mirror.registry.catalog import Catalog, Entry
from mirror.registry.refusals import ManifestUnknown, NotYet
from mirror.registry.tags import LATEST, of_metadata

WAIT_SECONDS = 10.0
"""Seconds that a request waits for an image that is nearly here: of the clients, docker asks only once."""

LOOK = 0.25
"""Seconds between two looks whether it is here."""

RETRY_AFTER = 2, 60
"""Seconds that clients are told to wait, at least and at most: none waits longer, whatever it is told."""


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom a manifest is looked up: the callers whose credentials upstream may see, for metadata and for a fill.

    `admitted` is what upstream said when it was asked whether the caller may read, if it was.
    """

    metadata: Caller
    image: Caller
    admitted: Current | None


class Pull:
    """Answers which image a reference means. With `when_stored` the last image is given until the next one is ready."""

    def __init__(self, catalog: Catalog, metadata_cache: MetadataCache, library: Library, *, when_stored: bool) -> None:
        self._catalog = catalog
        self._metadata_cache = metadata_cache
        self._library = library
        self._when_stored = when_stored
        self._seen: weakref.WeakKeyDictionary[Fill, tuple[float, int]] = weakref.WeakKeyDictionary()

    async def by_digest(self, digest: str) -> Entry:
        """Return the image whose manifest has that digest. Raises ManifestUnknown."""
        if (entry := (await self._catalog.entries()).by_manifest(digest)) is None:
            raise ManifestUnknown("no image here has a manifest of that digest")
        return entry

    async def by_tag(self, tag: str, asker: Asker) -> Entry:
        """Return the image that has the tag.

        Raises ManifestUnknown, NotYet when it is being fetched or indexed, or what keeps it from being fetched.
        """
        current = await self._current(asker, needed=tag == LATEST)
        if current is not None and (tag == LATEST or tag in of_metadata(current)):
            return await self._ready(current, tag, asker)
        if entry := (await self._catalog.entries()).by_tag(tag):
            return await self._ready(entry.info.metadata, tag, asker)
        for info in await self._library.list():  # one that is in the bucket alone
            if tag in of_metadata(info.metadata):
                return await self._ready(info.metadata, tag, asker)
        raise ManifestUnknown("no image here has that tag; tags/list has those that there are")

    async def latest(self) -> Entry | None:
        """Return the image that has the tag `latest`, as far as is known here, if it can be pulled now."""
        known = await self._metadata_cache.known_hash()
        entry = None if known is None else (await self._catalog.entries()).by_hash(known)
        return entry if entry and entry.index else await self._last(LATEST)

    async def _current(self, asker: Asker, *, needed: bool) -> ImageMetadata | None:
        """Return what clients get that name no image; None when nobody says so, and it is not `needed`."""
        try:
            current = asker.admitted or await self._metadata_cache.current(asker.metadata)
            return (await self._metadata_cache.shown(current, asker.metadata)).metadata
        except NotFound as error:
            if needed:
                raise ManifestUnknown(error.message) from None
        except UpstreamRefused as error:
            if needed and error.status == NotFound.status:
                raise ManifestUnknown("upstream has no image") from None
            if needed:
                raise
        except MirrorError:
            if needed:
                raise
        return None

    async def _ready(self, metadata: ImageMetadata, tag: str, asker: Asker) -> Entry:
        """Return an image that can be pulled: this one, or with `when_stored` the one that had the tag before."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + WAIT_SECONDS
        fill: Fill | None = None
        while True:
            entry = (await self._catalog.entries()).by_hash(metadata.hash)
            if entry is not None and entry.index is not None:
                return entry
            if self._when_stored and (last := await self._last(tag)):
                return last
            if entry is not None and entry.state.state is Indexing.REFUSED:
                raise ManifestUnknown(f"the image cannot be pulled: {entry.state.reason}")
            missing = entry is None or entry.info.verified_at is None  # a fill also verifies a file that is there
            if missing and (fill is None or fill.failure is None):
                fill = await self._fetch(metadata, asker, deadline)
            if fill is not None and fill.failure is not None:
                raise _refusal(fill.failure)
            said, left = self._fetching(fill, clock()) if entry is None or missing else _indexing(entry.state)
            if clock() >= deadline or (left is not None and clock() + left > deadline):
                wait = math.ceil(left or 0)
                raise NotYet(said, retry_after=max(RETRY_AFTER[0], min(wait, RETRY_AFTER[1])))
            await asyncio.sleep(LOOK)

    async def _last(self, tag: str) -> Entry | None:
        """Return the image that had the tag before, if it can be pulled."""
        if not self._when_stored:
            return None
        entries = await self._catalog.entries()
        return next(iter(entries.ready), None) if tag == LATEST else entries.by_tag(tag, ready=True)

    async def _fetch(self, metadata: ImageMetadata, asker: Asker, deadline: float) -> Fill | None:
        """Begin or join the fill of an image; None when it was stored in the meantime."""
        fill = None
        try:
            async with asyncio.timeout_at(deadline):
                fill = (await self._library.open(metadata, asker.image, pass_through=False)).fill
                if fill is None:
                    self._catalog.expire()
                else:
                    await fill.answered()
        except TimeoutError:
            pass
        except FillFailed as failure:
            raise _refusal(failure) from failure
        return fill

    def _fetching(self, fill: Fill | None, now: float) -> tuple[str, float | None]:
        """Return how far a fill is, in words, and about how many seconds it takes; None while that is unknown."""
        if fill is None:
            return "the image is being brought here; ask again", None
        began, first = self._seen.setdefault(fill, (now, fill.position))
        size, position = fill.metadata.size, fill.position
        left = (size - position) * (now - began) / (position - first) if position > first and now > began else None
        return _said("fetched", position / size, left), left


def _indexing(state: ArchiveState) -> tuple[str, float | None]:
    if state.done is None:
        return "the image is here, and is indexed soon; ask again", None
    return _said("indexed", state.done, state.seconds_left), state.seconds_left if state.done else None


def _said(what: str, done: float, left: float | None) -> str:
    about = "" if left is None else f", about {format_duration(max(1, round(left)))} left"
    return f"the image is being {what}: {math.floor(done * 100)} %{about}; ask again"


def _refusal(failure: FillFailed) -> MirrorError:
    if failure.reason in {Reason.CHANGED, Reason.WRONG_BYTES}:  # the next attempt begins anew
        return NotYet(f"{failure.words}; ask again", retry_after=RETRY_AFTER[0])
    return failure.error
