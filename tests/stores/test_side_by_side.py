"""Images do not wait for one another: a store that is slow to begin one begins the others at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from mirror.images.library import Library
from mirror.model.cache_status import CacheStatus
from mirror.model.caller import Caller, OwnCredential
from mirror.model.metadata import ImageMetadata
from mirror.model.source import Source
from mirror.store.base import StoredImage, Transfer
from mirror.store.disk.store import DiskStore
from mirror.upstream.client import Upstream
from tests.support.scripted_upstream import HOLDBACK, METADATA, ScriptedUpstream


class SlowStore(DiskStore):
    """Begins the first image only when it is let."""

    asked = 0

    async def begin(self, metadata: ImageMetadata, upstream: Source) -> Transfer | StoredImage:
        if metadata.hash == METADATA[0].hash:
            self.asked += 1
            await self.let.wait()
        return await super().begin(metadata, upstream)

    let: asyncio.Event


async def test_who_wants_another_image_does_not_wait_for_one_that_a_store_is_slow_to_begin(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        store = SlowStore(tmp_path, min_free=0, pool=pool)
        store.let = asyncio.Event()
        await store.prepare()
        library = Library(
            store,
            cast("Upstream", ScriptedUpstream()),
            own=OwnCredential(None),
            holdback=HOLDBACK,
            retry=3600,
            changed=lambda: None,
        )
        try:
            slow = [asyncio.create_task(library.open(METADATA[0], Caller(None, "0"))) for _ in range(3)]
            while not store.asked:
                await asyncio.sleep(0)
            async with asyncio.timeout(60):
                other = await library.open(METADATA[1], Caller(None, "1"))
            assert other.status is CacheStatus.STORED
            assert not any(task.done() for task in slow)
            store.let.set()
            found = [(await task).status for task in slow]
            assert sorted(found, key=lambda each: each.value) == [
                CacheStatus.COLLAPSED,
                CacheStatus.COLLAPSED,
                CacheStatus.STORED,
            ]
            assert store.asked == 1, "those who want the same image begin it once"
        finally:
            await library.stop()
