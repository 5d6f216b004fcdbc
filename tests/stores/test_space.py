"""Room for an image before its first byte: what is evicted for it, what never is, and what several fills promise."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirror.model.source import NoSource
from mirror.store.base import StoreUnavailable
from mirror.store.disk.partial_file import lock
from mirror.store.disk.removal import Kind
from mirror.store.disk.store import DiskStore
from mirror.store.read_locks import is_read
from tests.support.scripted import begin, disk_store, metadata_of

SIZE = 100_000


def image(name: str, size: int = SIZE) -> bytes:
    return (name * size)[:size].encode()


async def put(store: DiskStore, name: str, *, served: int | None = None) -> str:
    """Store an image, last served so many seconds after the epoch; its hash."""
    metadata = metadata_of(image(name))
    journal = await begin(store, metadata)
    await journal.append([image(name)])
    await journal.publish()
    await journal.close()
    if served is not None:
        await store.served(metadata.hash)
        os.utime(store.root / "images" / metadata.hash / "served", (served, served))
    return metadata.hash


async def names(store: DiskStore) -> set[str]:
    """What is stored, by the letter each image is made of. Reads past the store: what it opens it does not evict."""
    stored = [store.root / "images" / info.metadata.hash / "image" for info in await store.list()]
    return {path.read_bytes()[:1].decode() for path in stored}


def make_current(store: DiskStore, name: str) -> None:
    raw = metadata_of(image(name)).raw.decode()
    (store.root / "current.json").write_text(json.dumps({"metadata": raw, "fetchedAt": "2024-01-01T00:00:00Z"}))


async def test_room_is_made_by_evicting_what_was_served_least_recently(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=4 * SIZE) as store:
        make_current(store, "z")
        for name, served in (("a", 30), ("b", 10), ("c", 20), ("d", 40)):
            await put(store, name, served=served)
        await put(store, "z")
        assert await names(store) == {"a", "c", "d", "z"}
        await (await begin(store, metadata_of(image("y", 2 * SIZE)))).close()
        assert await names(store) == {"d", "z"}
        assert not list((tmp_path / "images").glob("*.tmp"))


async def test_the_room_for_a_new_image_is_what_is_free_and_what_may_go_less_what_fills_will_take(
    tmp_path: Path,
) -> None:
    async with disk_store(tmp_path, max_size=5 * SIZE) as store:
        assert (await store.use()).largest == 5 * SIZE
        make_current(store, "z")
        await put(store, "a", served=10)
        await put(store, "z", served=20)
        assert (await store.use()).largest == 4 * SIZE
        journal = await begin(store, metadata_of(image("y")))
        assert (await store.use()).largest == 3 * SIZE
        await journal.close()
        assert (await store.use()).largest == 4 * SIZE
        wanted = metadata_of(image("x", 4 * SIZE))
        await (await begin(store, wanted)).close()  # it has room indeed
        assert await names(store) == {"z"}


async def test_a_partial_that_rests_takes_no_room_from_the_image_that_it_will_be(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=3 * SIZE) as store:
        await put(store, "a", served=10)
        make_current(store, "z")
        journal = await begin(store, metadata_of(image("z")))
        await journal.append([image("z")[: SIZE // 2]])
        assert (await store.use()).largest == 2 * SIZE  # beside it
        await journal.close()
        assert (await store.use()).largest == 3 * SIZE


async def test_what_clients_get_until_the_current_image_is_stored_stays(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=2 * SIZE) as store:
        await put(store, "a", served=10)
        await put(store, "b", served=20)
        make_current(store, "z")
        (tmp_path / "shown.json").write_text(json.dumps({"metadata": metadata_of(image("a")).raw.decode()}))
        await put(store, "z")
        assert await names(store) == {"a", "z"}


async def test_what_is_pinned_current_being_served_or_among_the_newest_stays_and_then_there_is_no_room(
    tmp_path: Path,
) -> None:
    async with disk_store(tmp_path, max_size=4 * SIZE, keep=1) as store:
        make_current(store, "c")
        pinned, served = await put(store, "p", served=1), await put(store, "s", served=2)
        await put(store, "c", served=3)
        for number, info in enumerate(await store.list()):
            os.utime(tmp_path / "images" / info.metadata.hash / "metadata.json", (number, number))
        await put(store, "n", served=4)
        await store.pin(pinned, pinned=True)
        reading = await store.open(served)
        with pytest.raises(StoreUnavailable, match=r"store\.max_size = 390\.6 KiB.*store\.keep"):
            await store.begin(metadata_of(image("z")), NoSource())
        assert await names(store) == {"p", "s", "c", "n"}
        del reading
        await put(store, "z")
        assert await names(store) == {"p", "c", "n", "z"}


async def test_an_image_that_its_own_fill_still_serves_is_not_evicted(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=SIZE) as store:
        make_current(store, "z")
        metadata = metadata_of(image("a"))
        journal = await begin(store, metadata)
        await journal.append([image("a")])
        await journal.publish()
        sent_from = journal.file
        await journal.close()
        with pytest.raises(StoreUnavailable):
            await store.begin(metadata_of(image("z")), NoSource())
        del sent_from
        await put(store, "z")
        assert await names(store) == {"z"}


@contextmanager
def another_process_reads(path: Path) -> Iterator[None]:
    script = (
        "import os, sys; from pathlib import Path; from mirror.store.shared_file import SharedFile\n"
        "file = SharedFile(os.open(sys.argv[1], os.O_RDONLY)); print('reading', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        yield


async def test_what_another_process_serves_is_not_evicted_and_what_it_receives_is_not_taken(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=2 * SIZE) as store:
        make_current(store, "z")
        served = tmp_path / "images" / await put(store, "a") / "image"
        received = tmp_path / "partial" / metadata_of(image("b")).hash
        received.write_bytes(image("b"))
        with another_process_reads(served), another_process_reads(received):
            assert is_read(served)
            with pytest.raises(StoreUnavailable):
                await store.begin(metadata_of(image("z")), NoSource())
            assert received.exists()
        assert not is_read(served)
        await put(store, "z")
        assert await names(store) == {"a", "z"}
        assert not received.exists()


async def test_what_serves_nobody_goes_before_any_image(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=3 * SIZE) as store:
        make_current(store, "c")
        await put(store, "a")
        wrong = tmp_path / "quarantine" / f"{'0' * 64}-9999999999"
        wrong.write_bytes(image("w"))
        abandoned = await begin(store, metadata_of(image("x")))
        await abandoned.append([image("x")[:-1]])
        await abandoned.close()
        await put(store, "c")
        assert not wrong.exists()
        assert await names(store) == {"a", "c"}
        await (await begin(store, metadata_of(image("y")))).close()
        assert not (tmp_path / "partial" / metadata_of(image("x")).hash).exists()
        assert not (tmp_path / "partial" / f"{metadata_of(image('x')).hash}.json").exists()
        assert await names(store) == {"a", "c"}


async def test_what_turns_out_to_be_in_use_is_left_and_something_else_taken(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=3 * SIZE) as store:
        make_current(store, "z")
        await put(store, "a")
        await put(store, "b")
        locked = tmp_path / "partial" / metadata_of(image("x")).hash
        locked.write_bytes(image("x"))
        with locked.open("rb") as file:
            assert lock(file.fileno())
            await put(store, "z")
            assert locked.exists()
        assert len(await names(store)) == 2


async def test_the_partial_of_the_current_image_is_never_taken(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=SIZE) as store:
        make_current(store, "c")
        paused = await begin(store, metadata_of(image("c")))
        await paused.append([image("c")[:-1]])
        await paused.close()
        with pytest.raises(StoreUnavailable):
            await store.begin(metadata_of(image("z")), NoSource())
        assert (tmp_path / "partial" / metadata_of(image("c")).hash).exists()


async def test_nothing_is_evicted_when_that_would_not_be_enough(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=3 * SIZE) as store:
        make_current(store, "c")
        for name in ("a", "b", "c"):
            await put(store, name)
        with pytest.raises(StoreUnavailable, match=r"store\.max_size"):
            await store.begin(metadata_of(image("z", 3 * SIZE)), NoSource())
        with pytest.raises(
            StoreUnavailable, match=r"larger than all of the mirror's store .*store\.max_size = 293\.0 KiB"
        ):
            await store.begin(metadata_of(image("z", 3 * SIZE + 1)), NoSource())
        assert await names(store) == {"a", "b", "c"}


async def test_the_same_for_min_free(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        make_current(store, "c")
        await put(store, "a")
    async with disk_store(tmp_path, min_free=1 << 60) as store:
        with pytest.raises(StoreUnavailable, match=r"store\.min_free keeps 1048576\.0 TiB: free some space"):
            await store.begin(metadata_of(image("z")), NoSource())
        assert await names(store) == {"a"}


async def test_fills_that_run_at_once_never_promise_the_same_room(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=2 * SIZE) as store, disk_store(tmp_path, max_size=2 * SIZE) as other:
        first = await begin(store, metadata_of(image("a")))
        await first.append([image("a")[:10]])
        second = await begin(other, metadata_of(image("b", SIZE // 2)))
        with pytest.raises(StoreUnavailable, match=r"on their way 146\.\d KiB"):
            await store.begin(metadata_of(image("c")), NoSource())
        await second.discard()
        await second.close()
        third = await begin(store, metadata_of(image("c")))
        for journal in (first, third):
            await journal.close()


async def test_a_fill_that_ended_promises_nothing_although_somebody_still_reads_it(tmp_path: Path) -> None:
    async with disk_store(tmp_path, max_size=SIZE) as store:
        first = await begin(store, metadata_of(image("a")))
        await first.append([image("a")[:10]])
        sent_from = first.file
        await first.close()
        await (await begin(store, metadata_of(image("b")))).close()
        assert sent_from  # still open


async def test_a_fill_that_finds_the_disk_full_has_something_evicted_or_is_told_that_nothing_helps(
    tmp_path: Path,
) -> None:
    async with disk_store(tmp_path) as store:
        make_current(store, "c")
        for name in ("a", "b", "c"):
            await put(store, name, served=ord(name))
        assert await store.make_room(1)
        assert await names(store) == {"b", "c"}
        assert not await store.make_room(1 << 60)
        assert await names(store) == {"b", "c"}


async def test_collecting_goes_down_to_the_bounds_and_says_what_is_still_beyond(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        make_current(store, "d")
        hashes = [await put(store, name, served=ord(name)) for name in "abcd"]
        await store.pin(hashes[1], pinned=True)
    async with disk_store(tmp_path, max_size=SIZE + SIZE // 2) as store:
        dry = await store.collect(dry_run=True)
        assert await names(store) == {"a", "b", "c", "d"}
        done = await store.collect(dry_run=False)
        assert dry == done
        assert [(each.kind, each.path.name) for each in done.removals] == [
            (Kind.IMAGE, hashes[0]),
            (Kind.IMAGE, hashes[2]),
        ]
        assert done.beyond == SIZE // 2
        assert await names(store) == {"b", "d"}


async def test_a_removed_image_stays_readable_for_whoever_reads_it(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        stored = await put(store, "a")
        reading = await store.open(stored)
        assert await store.remove(stored)
        assert reading is not None
        assert reading.file.read(0, SIZE) == image("a")
        assert await store.open(stored) is None
        assert list((tmp_path / "images").iterdir()) == []
