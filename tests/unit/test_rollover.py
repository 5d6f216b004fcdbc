"""When clients get a new image: what two requests do to each other in the moment in which it is stored."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.images.rollover import WhenStored
from mirror.model.caller import Caller
from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note
from mirror.model.notification import Notification
from mirror.store.disk.store import DiskStore
from tests.support.scripted import disk_store, metadata_of, put

FIRST, SECOND = b"the first image", b"the second image"


async def test_of_two_requests_while_the_new_image_is_stored_the_slower_one_does_not_take_the_switch_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = metadata_of(FIRST), metadata_of(SECOND)
    told: list[Notification] = []
    brought: list[str] = []
    looked, go_on = asyncio.Event(), asyncio.Event()
    has = DiskStore.has

    async def slow_once(store: DiskStore, image_hash: str) -> bool:
        found = await has(store, image_hash)
        if image_hash == second.hash and not looked.is_set():
            looked.set()
            await go_on.wait()
        return found

    def bring(metadata: ImageMetadata, _: Caller) -> None:
        brought.append(metadata.hash)

    caplog.set_level("INFO")
    async with disk_store(tmp_path) as store:
        await put(store, FIRST)
        with ThreadPoolExecutor(1) as pool:
            note = tmp_path / "shown.json"
            rollover = WhenStored(store, bring=bring, pause=60, note=note, pool=pool, notify=told.append)
            await rollover.load(first)
            monkeypatch.setattr(DiskStore, "has", slow_once)
            slower = asyncio.create_task(rollover.show(second, Caller(None, "slower")))
            await looked.wait()
            await put(store, SECOND)
            assert await rollover.show(second, Caller(None, "quicker")) == second
            go_on.set()
            assert await slower == second
    assert brought == []
    assert [each.image for each in told] == [second.hash]
    assert [getattr(record, "action", None) for record in caplog.records].count("image.switched") == 1
    assert Note.parse(note.read_bytes()).metadata == second
