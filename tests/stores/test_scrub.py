"""The scrub among several images and several processes."""

import asyncio
import json
import os
from pathlib import Path

from mirror.common.metrics import Metrics
from mirror.images.scrub import Scrubber
from tests.support.scripted import disk_store, put


def count(metrics: Metrics, name: str, **labels: str) -> float:
    value = metrics.registry.get_sample_value(f"pps_mirror_{name}", labels)
    assert value is not None
    return value


async def test_an_image_that_cannot_be_verified_now_keeps_no_other_waiting(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        taken, waiting = await put(store, b"taken"), await put(store, b"waiting")
        (tmp_path / "images" / taken.hash / "verified").unlink()  # first in the queue
        (tmp_path / "images" / taken.hash / "image").rename(tmp_path / "partial" / taken.hash)  # where a fill has it
        marker = tmp_path / "images" / waiting.hash / "verified"
        note = json.loads(marker.read_text())
        marker.write_text(json.dumps(note | {"verifiedAt": "2024-01-02T03:04:05+00:00"}))
        metrics = Metrics()
        async with Scrubber(store, 3600, metrics).running(), asyncio.timeout(20):
            while not count(metrics, "scrubs_total", verdict="good"):
                await asyncio.sleep(0.01)
        assert not json.loads(marker.read_text())["verifiedAt"].startswith("2024")


async def test_a_rotten_image_is_counted_where_it_is_found(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        rotten = await put(store, b"rotten")
        image = tmp_path / "images" / rotten.hash / "image"
        image.chmod(0o600)
        image.write_bytes(b"ROTTEN")
        metrics = Metrics()
        async with Scrubber(store, 3600, metrics).running(), asyncio.timeout(20):
            while not count(metrics, "scrubs_total", verdict="bad"):
                await asyncio.sleep(0.01)
        assert count(metrics, "verification_failures_total", where="scrub") == 1
        assert count(metrics, "scrubs_total", verdict="good") == 0


async def test_one_process_scrubs_at_a_time(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store, disk_store(tmp_path) as other:
        mine = await store.scrubbing()
        assert mine is not None
        assert await other.scrubbing() is None
        os.close(mine)
        theirs = await other.scrubbing()
        assert theirs is not None
        os.close(theirs)
