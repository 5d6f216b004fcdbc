"""`pps-mirror import`: brings an image that was carried here into the store, beside a running mirror or alone.

The store is not touched before everything that will be read was checked. Then a fill reads it as it would read
upstream, with the same locks, room, resuming and verification of the whole. So mirrors that share the store need not be
told.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror.admin.hooks.publisher import Publisher
from mirror.bundle.check_parts import Checked, Checking
from mirror.bundle.discovery import Carried, find
from mirror.bundle.format import BadBundle
from mirror.bundle.medium import open_to_read
from mirror.common.metrics import Metrics
from mirror.common.progress import Meter
from mirror.common.tasks import finished
from mirror.common.units import format_size
from mirror.config import Config
from mirror.images.fill import Fill
from mirror.images.fill_outcome import FillFailed, Reason, State
from mirror.images.fill_progress import show_progress
from mirror.model.metadata import ImageMetadata
from mirror.model.notification import Kind, Notification
from mirror.model.source import Stream
from mirror.store.base import Transfer
from mirror.store.disk.layout import Layout, file_at
from mirror.wiring.metadata_cache import loaded_metadata_cache
from mirror.wiring.notices import once_in_a_fleet, telling_of_evictions
from mirror.wiring.stores import Stores, disk_store, open_stores

PIECE = 2 << 20
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The outcome: the image that is stored now, whether it is the current one, and what was read for it."""

    metadata: ImageMetadata
    current: bool
    checked: Sequence[Checked]

    def describe(self) -> dict[str, object]:
        """As machines see it."""
        parts = [each.describe() for each in self.checked]
        return {"hash": self.metadata.hash, "stored": True, "current": self.current, "parts": parts}


def bring_in(
    config: Config, paths: Sequence[Path], meter: Meter, *, metadata: Path | None = None, trusted: Path | None = None
) -> Imported:
    """Bring the image at `paths` (see `mirror.bundle.discovery`) into the store.

    Cancelled, it keeps what it has stored so far. With `trusted` the bundle must be signed by somebody that this file
    allows. Raises UsageError, BadBundle, StoreUnavailable.
    """
    carried = find(paths, metadata, trusted)
    name = f"{carried.metadata.hash[:12]} ({format_size(carried.metadata.size)})"
    if carried.signer is not None:
        meter.say(f"{name} is signed by {carried.signer}")
    elif carried.signed:
        meter.say(f"{name} is signed; by whom is not checked without --trust")
    return asyncio.run(_import(config, carried, name, meter))


async def _import(config: Config, carried: Carried, name: str, meter: Meter) -> Imported:
    metadata = carried.metadata
    with ThreadPoolExecutor(4) as pool:
        async with (
            Publisher(config, Metrics()).running() as notify,
            open_stores(config, pool, telling_of_evictions(notify)) as stores,
        ):
            await disk_store(config, pool).prepare()
            checked: Sequence[Checked] = ()
            if (stored := await stores.front.open(metadata.hash)) is not None:
                metadata = stored.metadata  # nothing else of what was carried here was checked against the image
                meter.say(f"{name} is stored already")
            else:
                checked = await _Import(config, stores, carried, name, meter, pool).run()
                said = f"{metadata.hash} is verified and stored: it was carried here"
                notify(Notification.about(Kind.IMAGE_STORED, metadata, said))
            metadata_cache = await loaded_metadata_cache(
                config, None, stores, pool, notify=once_in_a_fleet(stores.bucket, notify, lambda: bool(config.hooks))
            )
            current = False
            if config.upstream.url is not None:
                meter.say("clients get it by name when upstream says that it is the current one, and by its hash now")
            elif current := await metadata_cache.imported(metadata):
                meter.say("it is the current image: clients get it now")
            else:
                meter.say("another image stays the current one, for it is newer; clients get this one by its hash")
            if stores.bucket is not None:
                await stores.bucket.background.settled()
            said = f"{metadata.hash} was imported"
            notify(Notification.about(Kind.IMPORT_FINISHED, metadata, said, current=current))
            return Imported(metadata, current, checked)


class _Import:
    """One image on its way from the media into the open `stores`."""

    def __init__(
        self, config: Config, stores: Stores, carried: Carried, name: str, meter: Meter, pool: Executor
    ) -> None:
        self._config = config
        self._stores = stores
        self._carried = carried
        self._metadata = carried.metadata
        self._name = name
        self._meter = meter
        self._pool = pool

    async def run(self) -> Sequence[Checked]:
        """Check, and fill; once more from the beginning if the bytes that an earlier import had left were wrong."""
        position = self._position()
        while True:
            checked = await Checking(self._carried, self._meter, self._pool).run(position)
            try:
                await self._fill(checked)
            except FillFailed as failure:
                if failure.reason is not Reason.WRONG_BYTES:
                    raise failure.error from failure
                if not position:
                    raise BadBundle(f"it does not read the same twice, and is not stored: {failure}") from None
                self._meter.say("what the store had of this image already was wrong: beginning anew")
                position = 0
            else:
                return checked

    def _position(self) -> int:
        """Return how many bytes an earlier import or fill has left in the store: they are not read again."""
        if self._stores.disk is None:
            return 0
        file = file_at(Layout(self._config.store.path).partial / self._metadata.hash)
        return file.st_size if file is not None and file.st_size < self._metadata.size else 0

    async def _fill(self, checked: Sequence[Checked]) -> None:
        """Bring the image into the store. Raises FillFailed, StoreUnavailable."""
        begun = await self._stores.front.begin(self._metadata, _Media(checked, self._pool))
        if not isinstance(begun, Transfer):
            self._meter.say(f"{self._name} was stored meanwhile, by another process")
            return
        store = self._config.store
        retry = self._config.upstream.fill_retry
        fill = Fill(self._metadata, begun.source, begun.journal, holdback=store.holdback, retry=retry)
        if fill.state is State.FOLLOWING:
            self._meter.say("another process is receiving this image into the same store: following it")
        running = asyncio.create_task(fill.run(), name=f"import {self._metadata.hash}")
        try:
            await show_progress(fill, self._meter, kept="the same command goes on from there", doing="importing")
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        bucket = self._stores.bucket
        if bucket is not None and bucket.background.busy:
            self._meter.say("it is being brought into the bucket")
            await bucket.background.settled()
        self._meter.say(f"{self._name} is verified and stored")


class _Media:
    """The `Source` of an image whose checked parts are on media."""

    def __init__(self, parts: Sequence[Checked], pool: Executor) -> None:
        self._parts = parts
        self._pool = pool

    @asynccontextmanager
    async def open(self, offset: int, validator: str | None) -> AsyncIterator[Stream]:
        """See `mirror.model.source.Source.open`."""
        yield Stream(offset, None, self._pieces(offset))

    async def _pieces(self, offset: int) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        for part in self._parts:
            if offset >= part.size:
                offset -= part.size
                continue
            fd = await loop.run_in_executor(self._pool, open_to_read, part.path)
            file = os.fdopen(fd, "rb", buffering=0)
            try:
                while offset < part.size:
                    yield (piece := await finished(loop.run_in_executor(self._pool, self._read, part, fd, offset)))
                    offset += len(piece)
            finally:
                file.close()
            offset = 0

    def _read(self, part: Checked, fd: int, offset: int) -> bytes:
        try:
            piece = os.pread(fd, min(PIECE, part.size - offset), offset)
        except OSError as error:
            raise BadBundle(f"{part.path} cannot be read at byte {offset}: {error.strerror}") from None
        if not piece:
            raise BadBundle(f"{part.path} became shorter while it was read")
        return piece
