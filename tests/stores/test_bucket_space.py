"""Room in a bucket: what is evicted for a new image, what never is, and what becomes of those who do it together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mirror.images import retry
from mirror.model.metadata import ImageMetadata
from mirror.model.note import Note
from mirror.model.source import NoSource
from mirror.store.base import Cut
from mirror.store.disk.removal import Kind as RemovalKind
from mirror.store.s3 import parts
from mirror.store.s3.errors import NoRoom
from mirror.store.s3.lease import Lease, LeaseNote
from mirror.store.s3.live_processes import Processes
from mirror.store.s3.space import Bounds, BucketSpace
from mirror.store.s3.timings import Timings
from tests.support.kinds import PART, Kind, Replica, image_of, read
from tests.support.s3.fixtures import make_bucket
from tests.support.s3.server import S3Server
from tests.support.scripted import Opening, metadata_of

MIB = 1 << 20
ROOM = 3 * MIB + MIB // 2
"""Of a bucket, in which three images have room."""

IMAGES = [image_of(MIB, seed) for seed in range(6)]
HASHES = [metadata_of(image).hash for image in IMAGES]


TIMINGS = Timings(renew=1.0, follow=0.1, settle=0.1, lately=0.0, mark=0.05, turn_pause=0.05)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", PART)
    monkeypatch.setattr(retry, "BACKOFF", (0.01, 0.05))


@pytest.fixture(params=["bucket", "tiered"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = make_bucket(server)
    yield Kind(request.param, tmp_path, bucket, TIMINGS)
    bucket.client.remove_bucket(bucket.name)


@asynccontextmanager
async def full(kind: Kind, keep: int = 0) -> AsyncIterator[Replica]:
    """A replica, and three images in the bucket, each stored in another second than the one before; none is current."""
    async with kind.replica(max_size=ROOM, keep=keep) as replica:
        await _name(replica, metadata_of(IMAGES[5]))
        for image in IMAGES[:3]:
            await replica.put(image)
            await next_second(replica)
        yield replica


async def next_second(replica: Replica) -> None:
    """Wait until the server's clock, which has whole seconds, goes on."""
    assert replica.stores.bucket is not None
    before = await replica.stores.bucket.bucket.now()
    while await replica.stores.bucket.bucket.now() == before:
        await asyncio.sleep(0.05)


def in_bucket(kind: Kind) -> list[int]:
    """Which of the images have a name in the bucket."""
    assert kind.bucket is not None
    names = {name.removeprefix("images/") for name in kind.bucket.names("images/")}
    assert {name.removesuffix(".json") for name in names} == {name for name in names if "." not in name}
    return sorted(HASHES.index(name) for name in names if "." not in name)


def space_of(replica: Replica) -> BucketSpace:
    """What sees to the room of its bucket."""
    assert replica.stores.bucket is not None
    assert replica.stores.bucket._space is not None
    return replica.stores.bucket._space


async def serve(replica: Replica, number: int) -> None:
    """Let a client have an image."""
    await replica.stores.front.served(HASHES[number])
    await next_second(replica)


async def test_what_was_served_least_recently_goes_for_what_comes(kind: Kind) -> None:
    async with full(kind) as replica, kind.replica(max_size=ROOM, keep=0) as other:
        await serve(other, 0)
        await replica.put(IMAGES[3])
        assert in_bucket(kind) == [0, 2, 3]
        await replica.put(IMAGES[4])
        assert in_bucket(kind) == [0, 3, 4]
        assert kind.bucket is not None
        assert not kind.bucket.names("leases/")
        assert not kind.bucket.names("parts/")
        assert await space_of(replica).use() == (3 * MIB, ROOM, MIB // 2, ROOM)


Deed = Callable[[Replica, ImageMetadata], Awaitable[object]]


async def _pin(replica: Replica, metadata: ImageMetadata) -> None:
    assert replica.stores.bucket is not None
    await replica.stores.bucket.pin(metadata.hash, pinned=True)


async def _name(replica: Replica, metadata: ImageMetadata) -> None:
    assert replica.stores.bucket is not None
    await replica.stores.bucket.bucket.put("current.json", Note(metadata, datetime.now(UTC)).to_bytes())


async def _fetch(replica: Replica, metadata: ImageMetadata) -> None:
    assert replica.stores.bucket is not None
    held = Lease(replica.stores.bucket.bucket, metadata.hash, Processes(Path("/nowhere")))
    assert await held.take(LeaseNote("ab12", PART, size=metadata.size), await held.look())


async def _serve_lately(replica: Replica, metadata: ImageMetadata) -> None:
    space_of(replica)._lately *= 0
    await replica.stores.front.served(metadata.hash)


@pytest.mark.parametrize("deed", [_pin, _name], ids=["pinned", "current"])
async def test_what_is_pinned_or_current_is_never_evicted(kind: Kind, deed: Deed) -> None:
    async with full(kind) as replica:
        await deed(replica, metadata_of(IMAGES[0]))
        for image in IMAGES[3:]:
            await replica.put(image)
        assert 0 in in_bucket(kind)
        assert len(in_bucket(kind)) == 3


async def test_the_ones_stored_last_are_kept_and_so_is_what_was_served_lately(kind: Kind) -> None:
    async with full(kind, keep=2) as replica:
        await serve(replica, 0)
        await replica.put(IMAGES[3])
        assert in_bucket(kind) == [1, 2, 3]  # 0 was the only one that might go
    kind.timings = replace(TIMINGS, lately=3600.0)
    async with kind.replica(max_size=ROOM, keep=0) as another:
        assert (await space_of(another).use()).largest == MIB // 2


async def test_when_nothing_may_go_the_bucket_stays_as_it_is_and_that_is_said(kind: Kind) -> None:
    async with full(kind, keep=3) as replica:
        bucket = replica.stores.bucket
        assert bucket is not None
        if kind.name == "bucket":
            with pytest.raises(NoRoom, match=r"store\.s3\.max_size"):
                await replica.stores.front.begin(metadata_of(IMAGES[3]), NoSource())
        else:
            await replica.put(IMAGES[3])
            assert replica.stores.disk is not None
            assert await replica.stores.disk.has(HASHES[3])
        assert bucket.full is not None
        assert "holds 3.0 MiB of store.s3.max_size = 3.5 MiB" in bucket.full
        assert in_bucket(kind) == [0, 1, 2]
        assert kind.bucket is not None
        assert not kind.bucket.names("leases/")
        assert not kind.bucket.client.uploads(kind.bucket.name)
        await bucket.remove(HASHES[1])
        await bucket.evict(dry_run=False)
        assert bucket.full is None
        if kind.name == "tiered":
            await replica.stores.tiered.replenish(HASHES[3])
            await replica.settled()
        else:
            await replica.put(IMAGES[3])
        assert in_bucket(kind) == [0, 2, 3]


async def test_gc_evicts_down_to_the_bound_and_a_dry_run_says_the_same_and_does_nothing(kind: Kind) -> None:
    async with kind.replica() as unbounded:
        for image in IMAGES[:5]:
            await unbounded.put(image)
            await next_second(unbounded)
    async with kind.replica(max_size=ROOM, keep=2) as replica:
        assert replica.stores.bucket is not None
        said = await replica.stores.bucket.collect(dry_run=True)
        assert in_bucket(kind) == [0, 1, 2, 3, 4]
        done = await replica.stores.bucket.collect(dry_run=False)
        assert said == done
        assert [str(removal.path) for removal in done.removals] == [f"images/{HASHES[0]}", f"images/{HASHES[1]}"]
        assert done.beyond == 0
        assert in_bucket(kind) == [2, 3, 4]
    async with kind.replica(max_size=ROOM - MIB, keep=3) as strict:
        assert strict.stores.bucket is not None
        assert await strict.stores.bucket.collect(dry_run=False) == await strict.stores.bucket.collect(dry_run=True)
        assert (await strict.stores.bucket.collect(dry_run=False)).beyond == MIB // 2
        assert in_bucket(kind) == [2, 3, 4]


async def test_replicas_that_evict_at_once_evict_no_more_than_one_would(kind: Kind) -> None:
    async with (
        full(kind) as one,
        kind.replica(max_size=ROOM, keep=0) as two,
        kind.replica(max_size=ROOM, keep=0) as three,
    ):
        await asyncio.gather(one.put(IMAGES[3]), two.put(IMAGES[4]))
        assert in_bucket(kind) == [2, 3, 4]
        await serve(two, 4)
        await serve(two, 3)
        for room in (rooms := [space_of(replica) for replica in (one, two, three)]):
            room._bounds = Bounds(2 * MIB, room._bounds.retention)
        await asyncio.gather(*(room.collect(dry_run=False, conditions=True) for room in rooms))
        assert in_bucket(kind) == [3, 4]


@pytest.mark.parametrize("deed", [_pin, _name, _fetch, _serve_lately], ids=["pinned", "current", "fetched", "served"])
async def test_what_somebody_takes_up_between_the_plan_and_the_deed_stays(kind: Kind, deed: Deed) -> None:
    async with full(kind) as replica, kind.replica(max_size=ROOM, keep=0) as other:
        room = space_of(replica)
        lying = await room._look()
        (first, *_) = await room._candidates(lying, (), spare=None)
        assert first.kind is RemovalKind.IMAGE
        room._lately = room._lately.__class__(hours=1)
        await deed(other, metadata_of(IMAGES[HASHES.index(first.path.name)]))
        assert not await room._evict(first, lying, conditions=True)
        assert in_bucket(kind) == [0, 1, 2]
        assert kind.bucket is not None
        for name in kind.bucket.names("leases/"):
            kind.bucket.delete(name)


@pytest.mark.leases
async def test_what_is_stored_anew_between_the_plan_and_the_deed_stays(kind: Kind) -> None:
    async with full(kind) as replica:
        room = space_of(replica)
        lying = await room._look()
        (first, *_) = await room._candidates(lying, (), spare=None)
        assert kind.bucket is not None
        kind.bucket.write(str(first.path), b"other bytes, so that it is another version")
        assert not await room._evict(first, lying, conditions=True)
        assert in_bucket(kind) == [0, 1, 2]


async def test_who_reads_an_image_that_is_evicted_gets_its_bytes_or_a_reset(kind: Kind) -> None:
    async with full(kind) as replica, kind.replica(max_size=ROOM, keep=0) as other:
        assert other.stores.bucket is not None
        image = await other.stores.bucket.open(HASHES[0])
        assert image is not None
        room = space_of(replica)
        lying = await room._look()
        (removal,) = [each for each in await room._candidates(lying, (), spare=None) if each.path.name == HASHES[0]]
        received = bytearray()
        with pytest.raises(Cut):
            async for piece in image.pieces(0, MIB):
                received += piece
                if len(received) == len(piece):
                    assert await room._evict(removal, lying, conditions=True)
                    async for _ in image.pieces(0, MIB):
                        raise AssertionError("there is nothing to be read any more")
        assert IMAGES[0].startswith(received)
        other.stores.bucket._found.clear()  # for two seconds it would believe that the image is there
        await other.put(IMAGES[0])
        again = await other.open(HASHES[0])
        assert await read(again) == IMAGES[0]


async def test_what_is_being_read_here_is_marked_again_and_again_and_stays(kind: Kind) -> None:
    async with full(kind) as replica:
        assert replica.stores.bucket is not None
        image = await replica.stores.bucket.open(HASHES[0])
        assert kind.bucket is not None
        async with asyncio.timeout(20):
            while f"served/{HASHES[0]}" not in kind.bucket.names("served/"):
                await asyncio.sleep(0.05)
        await replica.put(IMAGES[3])
        assert in_bucket(kind) == [0, 2, 3]
        del image


@pytest.mark.leases
async def test_parts_that_nobody_goes_on_with_go_before_any_image(kind: Kind) -> None:
    kind.timings = replace(TIMINGS, lease=3.0)
    large = image_of(PART + MIB)
    async with kind.replica(max_size=PART + 5 * MIB, keep=0) as replica:
        await replica.put(IMAGES[0])
        dying = await replica.begin(large, [Opening(PART + 1, hang=True)])
        assert kind.bucket is not None
        async with asyncio.timeout(20):
            while not kind.bucket.names("parts/"):
                await asyncio.sleep(0.05)
        await dying.cancel()
        await next_second(replica)
        await next_second(replica)
        await replica.put(image_of(PART + 2 * MIB, 7), metadata_of(image_of(PART + 2 * MIB, 7)))
        assert not kind.bucket.names("parts/")
        assert f"images/{HASHES[0]}" in kind.bucket.names("images/")


async def test_without_bounds_nothing_is_evicted_and_nothing_is_marked(kind: Kind) -> None:
    async with kind.replica() as replica:
        for image in IMAGES:
            await replica.put(image)
        await replica.stores.front.served(HASHES[0])
        assert in_bucket(kind) == [0, 1, 2, 3, 4, 5]
        assert kind.bucket is not None
        assert not kind.bucket.names("served/")
        assert replica.stores.bucket is not None
        assert await replica.stores.bucket.use() is None
        assert not (await replica.stores.bucket.collect(dry_run=False)).removals
