"""What every store promises, whatever it keeps its images in: one suite for disk, bucket and both.

The stores are driven as the mirror drives them: a fill writes, bodies are read as downloads read them.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from mirror.images import retry
from mirror.model.metadata import ImageMetadata
from mirror.store.base import Cut
from mirror.store.disk.verification import Verdict
from mirror.store.s3 import lease, leftovers, parts
from mirror.store.s3.timings import Timings
from tests.support.kinds import HOLDBACK, PART, FillFailed, Kind, Replica, image_of, read
from tests.support.s3.fixtures import TestBucket, make_bucket
from tests.support.s3.server import S3Server
from tests.support.scripted import Opening, metadata_of

SIZES = [1, HOLDBACK - 1, HOLDBACK + 1, PART - 1, PART, PART + 1, 2 * PART + 12345]
SIZE = 2 * PART + 12345
TIMINGS = Timings(lease=3.0, renew=1.0, follow=0.1, settle=0.1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", PART)
    monkeypatch.setattr(retry, "BACKOFF", (0.01, 0.05))


@pytest.fixture(params=["disk", "bucket", "tiered"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    if request.param == "disk":
        yield Kind("disk", tmp_path, None)
        return
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = make_bucket(server)
    yield Kind(request.param, tmp_path, bucket, TIMINGS)
    bucket.client.remove_bucket(bucket.name)


@pytest.fixture
async def replica(kind: Kind) -> AsyncIterator[Replica]:
    async with kind.replica() as replica:
        yield replica


async def landed(bucket: TestBucket, metadata: ImageMetadata, position: int) -> None:
    """Wait until the one who fetches says that so much is in the bucket."""
    async with asyncio.timeout(20):
        while (note := bucket.read(f"leases/{metadata.hash}")) is None or json.loads(note)["position"] < position:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("size", SIZES)
async def test_an_image_of_any_size_is_read_as_it_was_written(replica: Replica, size: int) -> None:
    image = image_of(size)
    running = await replica.begin(image)
    assert await read(running.fill) == image
    await running.end()
    await replica.settled()
    stored = await replica.open(metadata_of(image).hash)
    assert await read(stored) == image
    randomly = random.Random(size)
    for _ in range(8):
        start = randomly.randrange(size)
        stop = randomly.randrange(start, size) + 1
        assert await read(stored, start, stop) == image[start:stop]


async def test_readers_of_any_part_during_a_fill_get_its_bytes_when_they_come(replica: Replica) -> None:
    image = image_of(SIZE)
    running = await replica.begin(image, [Opening(PART + 1000), Opening(1000), Opening(0)])
    randomly = random.Random(1)
    spans = [sorted((randomly.randrange(SIZE), randomly.randrange(1, SIZE) + 1)) for _ in range(10)]
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        reads = [tasks.create_task(read(running.fill, start, stop)) for start, stop in [*spans, [0, SIZE]]]
    for (start, stop), got in zip([*spans, [0, SIZE]], reads, strict=True):
        assert got.result() == image[start:stop]
    await running.end()


async def test_a_reader_that_leaves_stops_nobody(replica: Replica) -> None:
    image = image_of(SIZE)
    running = await replica.begin(image)
    leaving = asyncio.create_task(read(running.fill))
    staying = asyncio.create_task(read(running.fill))
    await asyncio.sleep(0.01)
    leaving.cancel()
    assert await staying == image
    await running.end()


async def test_readers_go_on_when_the_image_gets_its_name(replica: Replica) -> None:
    image = image_of(SIZE)
    running = await replica.begin(image)
    body, position, got = running.fill, 0, bytearray()
    while position < SIZE:  # one that is slow: it is behind all the time, and far from the end when all is published
        stop = min(SIZE, position + 700_000)
        got += await read(body, position, stop)
        position = stop
        if position > PART // 2:
            await running.end()
            await replica.settled()
    assert got == image


@pytest.mark.leases
async def test_a_fill_that_was_stopped_is_gone_on_with_and_costs_little_more(kind: Kind) -> None:
    image = image_of(SIZE)
    async with kind.replica() as first:
        running = await first.begin(image, [Opening(2 * PART, hang=True)])
        await asyncio.wait_for(running.fill.available(0), 10)
        while running.fill.position < 2 * PART:
            await asyncio.sleep(0.01)
        if kind.bucket is not None:
            await landed(kind.bucket, metadata_of(image), 2 * PART)
    async with kind.replica() as second:
        running = await second.begin(image)
        assert await read(running.fill) == image
        await running.end()
        assert running.source.sent <= SIZE - 2 * PART
        await second.settled()
    assert kind.images() == {metadata_of(image).hash}
    if kind.bucket is not None:
        assert not kind.bucket.names("parts/")
        assert not kind.bucket.names("leases/")
        assert not kind.bucket.client.uploads(kind.bucket.name)


async def test_wrong_bytes_get_no_name_and_no_reader_gets_them_all(kind: Kind, replica: Replica) -> None:
    image = image_of(SIZE)
    wrong = image[:-1] + bytes([image[-1] ^ 1])
    running = await replica.begin(image, [Opening(SIZE, clean=True, image=wrong)])
    with pytest.raises(FillFailed):
        await read(running.fill)
    with pytest.raises(FillFailed):
        await running.end()
    assert not kind.images()
    assert await replica.stores.front.open(metadata_of(image).hash) is None
    await replica.put(image)
    assert await read(await replica.open(metadata_of(image).hash)) == image


@pytest.mark.parametrize("more", [-1, 1])
async def test_a_source_that_lies_about_the_length_is_not_believed(kind: Kind, replica: Replica, more: int) -> None:
    image = image_of(PART + 100)
    sent = image + b"x" if more > 0 else image[:-1]
    running = await replica.begin(image, [Opening(len(sent), clean=True, image=sent)] * 3)
    with pytest.raises(FillFailed):
        await running.end()
    assert not kind.images()


@pytest.mark.leases
async def test_two_processes_that_fill_one_image_at_once_fetch_it_once(kind: Kind) -> None:
    image = image_of(SIZE)
    async with kind.replica() as one, kind.replica() as other:
        fills = await asyncio.gather(one.begin(image), other.begin(image))
        assert [await read(each.fill) for each in fills] == [image, image]
        for each in fills:
            await each.end()
        assert sum(len(each.source.asked) for each in fills) == 1
        await one.settled()
        await other.settled()
    assert kind.images() == {metadata_of(image).hash}


async def test_two_processes_that_publish_one_image_do_each_other_no_harm(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take(*_: object) -> bool:
        return True

    monkeypatch.setattr(lease.Lease, "take", take)  # as if the server heeded no conditions
    monkeypatch.setattr(lease.Lease, "renew", take)
    image = image_of(SIZE)
    async with kind.replica() as one, kind.replica() as other:
        fills = await asyncio.gather(one.begin(image), other.begin(image))
        assert [await read(each.fill) for each in fills] == [image, image]
        for each in fills:
            await each.end()
        await one.settled()
        await other.settled()
    assert kind.images() == {metadata_of(image).hash}
    async with kind.replica() as later:
        assert await read(await later.open(metadata_of(image).hash)) == image


async def test_what_is_not_there_is_not_opened(replica: Replica) -> None:
    for name in ("0" * 64, "", "../../etc/passwd", "A" * 64, "images/x"):
        assert await replica.stores.front.open(name) is None
        assert not await replica.stores.front.has(name)
    assert await replica.stores.front.list() == []


async def test_the_list_has_every_image_newest_first(kind: Kind, replica: Replica) -> None:
    stored = []
    for number in range(4):
        image = image_of(1000 + number)
        created = f"202{number}-01-02T03:04:05Z"
        raw = metadata_of(image).raw.replace(b"2024-01-02T03:04:05Z", created.encode())
        stored.append(await replica.put(image, ImageMetadata.parse(raw)))
    listed = await replica.stores.front.list()
    assert [info.metadata.hash for info in listed] == [metadata.hash for metadata in reversed(stored)]
    where = {"disk": ("disk",), "bucket": ("bucket",), "tiered": ("disk", "bucket")}[kind.name]
    assert {info.places for info in listed} == {where}


async def test_images_of_one_time_are_listed_newest_stored_first_then_by_hash(replica: Replica) -> None:
    for number in range(6):
        await replica.put(image_of(1000 + number))
    for place in (replica.stores.front, *replica.stores.places.values()):
        listed = await place.list()
        assert len(listed) == 6
        keys = [(-info.stored_at.timestamp(), info.metadata.hash) for info in listed]
        assert keys == sorted(keys)


async def test_an_image_is_pinned_verified_and_removed_wherever_it_is(kind: Kind, replica: Replica) -> None:
    metadata = await replica.put(image_of(PART + 5))
    for place in replica.stores.places.values():
        assert await place.sizes() == {metadata.hash: PART + 5}
        assert (await place.verify(metadata.hash)).verdict is Verdict.GOOD
        await place.pin(metadata.hash, pinned=True)
        assert [info.pinned for info in await place.list()] == [True]
        await place.pin(metadata.hash, pinned=False)
        assert [info.pinned for info in await place.list()] == [False]
        assert (await place.collect(dry_run=False)).removals == ()
        assert await place.remove(metadata.hash)
        assert (await place.verify(metadata.hash)).verdict is Verdict.GONE
    assert not kind.images()
    assert not await replica.stores.front.has(metadata.hash)


# What only a bucket can have


@pytest.fixture
def shared(kind: Kind) -> TestBucket:
    assert kind.bucket is not None
    return kind.bucket


ONLY_BUCKETS = pytest.mark.parametrize("kind", ["bucket", "tiered"], indirect=True)


def lay_out(bucket: TestBucket, image: bytes, metadata: ImageMetadata | None = None) -> ImageMetadata:
    """Put an image into the bucket by hand."""
    metadata = metadata or metadata_of(image)
    bucket.write(f"images/{metadata.hash}", image)
    bucket.write(f"images/{metadata.hash}.json", metadata.raw)
    return metadata


@ONLY_BUCKETS
async def test_an_image_laid_into_the_bucket_by_hand_is_served(replica: Replica, shared: TestBucket) -> None:
    image = image_of(PART + 77)
    metadata = lay_out(shared, image)
    assert await replica.stores.front.has(metadata.hash)
    body = await replica.open(metadata.hash)
    assert await read(body, 1000, 2000) == image[1000:2000]
    assert await read(body) == image
    assert await read(body, PART, PART + 77) == image[PART:]


@ONLY_BUCKETS
async def test_wrong_bytes_in_the_bucket_are_given_to_nobody_whole_and_overwritten(
    replica: Replica, shared: TestBucket
) -> None:
    image = image_of(PART + 77)
    metadata = lay_out(shared, bytes([image[0] ^ 1]) + image[1:], metadata_of(image))
    with pytest.raises((Cut, FillFailed)):
        await read(await replica.open(metadata.hash))
    running = await replica.begin(image)
    assert await read(running.fill) == image
    await running.end()
    await replica.settled()
    assert len(running.source.asked) == 1
    assert shared.read(f"images/{metadata.hash}") == image


@ONLY_BUCKETS
async def test_the_last_bytes_of_what_is_wrong_in_the_bucket_are_given_to_no_range(
    kind: Kind, replica: Replica, shared: TestBucket
) -> None:
    image = image_of(PART + 77)
    metadata = lay_out(shared, bytes([image[0] ^ 1]) + image[1:], metadata_of(image))
    body = await replica.open(metadata.hash)
    with pytest.raises((Cut, FillFailed)):
        await read(body, len(image) - 10, len(image))


@ONLY_BUCKETS
@pytest.mark.parametrize("size", [0, 10, PART])
async def test_an_object_of_another_size_is_no_image(replica: Replica, shared: TestBucket, size: int) -> None:
    image = image_of(1000)
    metadata = lay_out(shared, image_of(size), metadata_of(image))
    assert await replica.stores.front.open(metadata.hash) is None
    await replica.put(image)
    assert shared.read(f"images/{metadata.hash}") == image


@ONLY_BUCKETS
@pytest.mark.parametrize("said", [None, b"", b"{}", b"[]", b"\xff"])
async def test_an_object_without_good_metadata_is_no_image(
    replica: Replica, shared: TestBucket, said: bytes | None
) -> None:
    metadata = metadata_of(image_of(1000))
    shared.write(f"images/{metadata.hash}", image_of(1000))
    if said is not None:
        shared.write(f"images/{metadata.hash}.json", said)
    assert await replica.stores.front.open(metadata.hash) is None
    assert await replica.stores.front.list() == []


@ONLY_BUCKETS
async def test_metadata_of_another_image_is_not_believed(replica: Replica, shared: TestBucket) -> None:
    metadata = metadata_of(image_of(1000))
    shared.write(f"images/{metadata.hash}", image_of(1000))
    shared.write(f"images/{metadata.hash}.json", metadata_of(image_of(1000, 1)).raw)
    assert not await replica.stores.front.has(metadata.hash)


@ONLY_BUCKETS
async def test_more_objects_than_a_page_are_all_listed(replica: Replica, shared: TestBucket) -> None:
    for number in range(1005):
        shared.write(f"images/{number:064x}", b"")
    assert replica.stores.bucket is not None
    assert len(await replica.stores.bucket.sizes()) == 1005


@ONLY_BUCKETS
async def test_what_fills_left_a_day_ago_is_removed_and_nothing_else(
    replica: Replica, shared: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = await replica.put(image_of(1000))
    before = set(shared.names())
    hash_, name = "a" * 64, "pps-mirror/images/" + "a" * 64
    shared.write(f"parts/{hash_}/dead/00000", b"x")
    shared.write(f"leases/{hash_}", b"{}")
    shared.client.raw.create_multipart_upload(Bucket=shared.name, Key=name)
    assert replica.stores.bucket is not None
    assert (await replica.stores.bucket.collect(dry_run=False)).removals == ()
    monkeypatch.setattr(leftovers, "STALE", timedelta(seconds=-5))
    assert len((await replica.stores.bucket.collect(dry_run=True)).removals) == 3
    assert set(shared.names()) > before
    await replica.stores.bucket.collect(dry_run=False)
    assert set(shared.names()) == before
    assert not shared.client.uploads(shared.name)
    assert await replica.stores.front.has(metadata.hash)


@pytest.mark.leases
@ONLY_BUCKETS
async def test_a_lease_that_says_more_than_there_can_be_leads_nobody_beyond_the_image(
    replica: Replica, shared: TestBucket
) -> None:
    image = image_of(PART + 1000)
    image_hash = metadata_of(image).hash
    for number, part in enumerate((image[:PART], image[PART:])):
        shared.write(f"parts/{image_hash}/ab12/{number:05d}", part)
    note = lease.LeaseNote("ab12", PART, 5 * PART, ("ab12",) * 5)
    shared.write(f"leases/{image_hash}", note.encode())
    running = await replica.begin(image)
    assert await read(running.fill) == image
    await running.end()
    assert not running.source.asked


@ONLY_BUCKETS
@pytest.mark.parametrize("said", [b"", b"nonsense", b"{}", json.dumps({"fill": "../..", "partSize": 1}).encode()])
async def test_a_lease_that_says_nothing_sensible_is_free(replica: Replica, shared: TestBucket, said: bytes) -> None:
    image = image_of(1000)
    shared.write(f"leases/{metadata_of(image).hash}", said)
    await replica.put(image)
    assert shared.read(f"images/{metadata_of(image).hash}") == image


@pytest.mark.leases
@ONLY_BUCKETS
async def test_parts_that_were_altered_by_hand_become_no_image(kind: Kind, shared: TestBucket) -> None:
    image = image_of(SIZE)
    image_hash = metadata_of(image).hash
    async with kind.replica() as first:
        running = await first.begin(image, [Opening(2 * PART, hang=True)])
        await landed(shared, running.fill.metadata, 2 * PART)
    part = shared.names("parts/")[0]
    shared.write(part, image_of(PART, 1))
    async with kind.replica() as second:
        try:
            await second.put(image)
        except FillFailed:
            await second.put(image)  # what was wrong is known now
    stored = shared.read(f"images/{image_hash}")
    assert stored is not None
    assert hashlib.sha256(stored).hexdigest() == image_hash
