"""The disk store alone: what survives, what is noticed, what two processes may do to each other."""

import asyncio
import dataclasses
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.common.files import write_durably
from mirror.model.metadata import ImageMetadata
from mirror.model.source import NoSource
from mirror.store.base import Corrupt, Lost, StoredImage, StoreUnavailable
from mirror.store.disk.batched_writes import begin_writeback
from mirror.store.disk.partial_file import FLUSH
from mirror.store.disk.store import DiskStore
from tests.support.scripted import begin, disk_store, metadata_of, put

IMAGE = bytes(range(256)) * 5000
METADATA = metadata_of(IMAGE)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DiskStore]:
    async with disk_store(tmp_path) as store:
        yield store


async def test_what_was_appended_is_published_whole(store: DiskStore, tmp_path: Path) -> None:
    journal = await begin(store, METADATA)
    for first in range(0, len(IMAGE), 99_999):
        await journal.append([IMAGE[first : first + 50_000], IMAGE[first + 50_000 : first + 99_999]])
    assert (await store.open(METADATA.hash)) is None
    await journal.publish()
    await journal.close()
    image = await store.open(METADATA.hash)
    assert image is not None
    assert image.file.read(0, len(IMAGE)) == IMAGE
    assert (tmp_path / "images" / METADATA.hash / "metadata.json").read_bytes() == METADATA.raw
    assert not list((tmp_path / "partial").iterdir())


@pytest.mark.parametrize("wrong", [IMAGE[:-1], IMAGE[:-1] + b"x", b""])
async def test_nothing_wrong_gets_a_name(store: DiskStore, tmp_path: Path, wrong: bytes) -> None:
    journal = await begin(store, METADATA)
    await journal.append([wrong])
    with pytest.raises(Corrupt, match=METADATA.hash):
        await journal.publish()
    await journal.quarantine()
    await journal.close()
    assert not list((tmp_path / "images").iterdir())
    assert not list((tmp_path / "partial").iterdir())
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert aside.read_bytes() == wrong


async def test_a_journal_is_taken_up_with_its_validator_after_a_crash(store: DiskStore) -> None:
    journal = await begin(store, METADATA)
    await journal.append([IMAGE[:1000]])
    await journal.remember('"v1"')
    await journal.close()
    again = await begin(store, METADATA)
    assert (again.position, again.validator) == (0, '"v1"')
    while await again.recover():
        pass
    assert again.position == 1000
    await again.append([IMAGE[1000:]])
    await again.publish()
    await again.close()
    assert await store.open(METADATA.hash) is not None


async def test_one_journal_has_one_appender_and_others_follow_it(store: DiskStore) -> None:
    journal = await begin(store, METADATA)
    await journal.append([IMAGE[:1000]])
    follower = await begin(store, METADATA)
    assert (journal.ours, follower.ours, follower.position) == (True, False, 1000)
    await journal.append([IMAGE[1000:3000]])
    assert await follower.recover()
    assert follower.file.read(0, follower.position) == IMAGE[:3000]
    await journal.append([IMAGE[3000:]])
    await journal.publish()
    assert not await follower.recover()
    assert follower.published
    assert not follower.ours
    await journal.close()
    await follower.close()
    assert await store.open(METADATA.hash) is not None


async def test_who_follows_takes_over_and_digests_what_is_there_when_the_appender_is_gone(store: DiskStore) -> None:
    journal, follower, other = await begin(store, METADATA), await begin(store, METADATA), await begin(store, METADATA)
    await journal.append([IMAGE[:3000]])
    await journal.remember('"v1"')
    await journal.close()
    while await follower.recover():
        pass
    assert (follower.ours, follower.position, follower.validator) == (True, 3000, '"v1"')
    assert await other.recover()
    assert (other.ours, other.position) == (False, 3000)
    await follower.append([IMAGE[3000:]])
    await follower.publish()
    await follower.close()
    assert not await other.recover()
    assert other.published
    await other.close()


@pytest.mark.parametrize("how", ["quarantined", "discarded", "begun anew", "cut off"])
async def test_who_follows_learns_that_what_it_read_is_gone(store: DiskStore, how: str) -> None:
    journal, follower = await begin(store, METADATA), await begin(store, METADATA)
    await journal.append([IMAGE[:3000]])
    assert await follower.recover()
    if how == "quarantined":
        await journal.quarantine()
    elif how == "cut off":
        os.ftruncate(journal.file.fd, 2000)
    else:
        await journal.discard()
    again = await begin(store, METADATA) if how == "begun anew" else None
    with pytest.raises(Lost):
        await follower.recover()
    for each in (journal, follower, again):
        if each is not None:
            await each.close()


async def test_an_image_that_another_process_has_stored_meanwhile_is_not_begun_again(
    store: DiskStore, tmp_path: Path
) -> None:
    await put(store, IMAGE)
    assert isinstance(await store.begin(METADATA, NoSource()), StoredImage)
    assert not list((tmp_path / "partial").iterdir())


async def test_an_image_without_room_is_refused_before_a_byte(tmp_path: Path) -> None:
    async with disk_store(tmp_path, min_free=1 << 60) as store:
        with pytest.raises(StoreUnavailable, match=r"store\.min_free"):
            await store.begin(METADATA, NoSource())


@pytest.mark.parametrize("damage", ["shorter", "gone", "no metadata", "other metadata", "metadata is nonsense"])
async def test_a_damaged_image_counts_as_not_there_and_can_be_stored_anew(
    store: DiskStore, tmp_path: Path, damage: str
) -> None:
    await put(store, IMAGE)
    directory = tmp_path / "images" / METADATA.hash
    match damage:
        case "shorter":
            os.truncate(directory / "image", 5)
        case "gone":
            (directory / "image").unlink()
        case "no metadata":
            (directory / "metadata.json").unlink()
        case "other metadata":
            (directory / "metadata.json").write_bytes(metadata_of(b"other").raw)
        case _:
            (directory / "metadata.json").write_bytes(b"{")
    assert await store.open(METADATA.hash) is None
    await put(store, IMAGE)
    image = await store.open(METADATA.hash)
    assert image is not None
    assert image.file.read(0, len(IMAGE)) == IMAGE


async def adopted(store: DiskStore, metadata: ImageMetadata = METADATA) -> int:
    """Verify anew what is stored and not trusted, as a fill does; how many bytes were there."""
    journal = await begin(store, metadata)
    while await journal.recover():
        pass
    taken = journal.position
    if taken == metadata.size:
        await journal.publish()
    await journal.close()
    return taken


@pytest.mark.parametrize("change", ["touched", "copied over", "older version"])
async def test_a_file_that_is_not_the_one_that_was_verified_is_a_partial_until_it_is_verified_again(
    store: DiskStore, tmp_path: Path, change: str
) -> None:
    await put(store, IMAGE)
    directory = tmp_path / "images" / METADATA.hash
    file = (directory / "image").stat()
    match change:
        case "touched":
            os.utime(directory / "image", ns=(file.st_atime_ns, file.st_mtime_ns + 1))
        case "copied over":
            (tmp_path / "copy").write_bytes(IMAGE)
            os.utime(tmp_path / "copy", ns=(file.st_atime_ns, file.st_mtime_ns))
            (tmp_path / "copy").rename(directory / "image")
        case _:
            (directory / "verified").unlink()
    (directory / "pinned").touch()
    assert await store.open(METADATA.hash) is None
    assert [info.verified_at for info in await store.list()] == [None]
    assert await adopted(store) == len(IMAGE)
    assert await store.open(METADATA.hash) is not None
    (info,) = await store.list()
    assert info.pinned
    assert info.verified_at is not None
    assert not list((tmp_path / "partial").iterdir())


async def test_an_image_that_is_being_verified_anew_is_listed_all_the_while(store: DiskStore, tmp_path: Path) -> None:
    await put(store, IMAGE)
    (tmp_path / "images" / METADATA.hash / "verified").write_text("{")
    journal = await begin(store, METADATA)
    assert [info.metadata for info in await store.list()] == [METADATA]
    await journal.close()


async def test_an_image_whose_verification_was_interrupted_is_not_cleared_away_and_is_taken_up_again(
    store: DiskStore, tmp_path: Path
) -> None:
    await put(store, IMAGE)
    os.utime(tmp_path / "images" / METADATA.hash / "image", (1, 1))
    await (await begin(store, METADATA)).close()
    await store.prepare()
    assert not (await store.collect(dry_run=False)).removals
    assert [info.metadata for info in await store.list()] == [METADATA]
    assert await adopted(store) == len(IMAGE)


async def test_wrong_bytes_laid_out_by_hand_never_become_an_image(store: DiskStore, tmp_path: Path) -> None:
    directory = tmp_path / "images" / METADATA.hash
    directory.mkdir()
    (directory / "metadata.json").write_bytes(METADATA.raw)
    (directory / "image").write_bytes(IMAGE[:-1] + b"x")
    with pytest.raises(Corrupt):
        await adopted(store)
    assert await store.open(METADATA.hash) is None


async def test_a_truncated_image_is_continued_from_its_end(store: DiskStore, tmp_path: Path) -> None:
    await put(store, IMAGE)
    os.truncate(tmp_path / "images" / METADATA.hash / "image", 4000)
    assert await store.list() == []
    assert await adopted(store) == 4000
    assert (tmp_path / "partial" / METADATA.hash).stat().st_size == 4000


@pytest.mark.parametrize(("stored", "partial"), [(len(IMAGE) + 1, 0), (4000, 5000)])
async def test_a_stored_file_that_is_too_long_or_of_less_use_than_the_partial_is_set_aside(
    store: DiskStore, tmp_path: Path, stored: int, partial: int
) -> None:
    await put(store, IMAGE)
    os.truncate(tmp_path / "images" / METADATA.hash / "image", stored)
    (tmp_path / "partial" / METADATA.hash).write_bytes(IMAGE[:partial])
    assert await adopted(store) == partial
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert aside.stat().st_size == stored


async def test_a_file_that_is_verified_anew_needs_no_room(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        await put(store, IMAGE)
    (tmp_path / "images" / METADATA.hash / "verified").unlink()
    async with disk_store(tmp_path, min_free=1 << 60) as store:
        assert await adopted(store) == len(IMAGE)


async def test_a_name_that_is_no_hash_opens_nothing(store: DiskStore) -> None:
    for name in ("..", "../images/" + METADATA.hash, METADATA.hash.upper(), "", "\0"):
        assert await store.open(name) is None


async def test_the_list_is_newest_first_and_leaves_strangers_alone(store: DiskStore, tmp_path: Path) -> None:
    first, second = await put(store, b"first"), await put(store, b"second")
    (tmp_path / "images" / "lost+found").mkdir()
    (tmp_path / "images" / second.hash / "pinned").touch()
    await store.served(first.hash)
    await store.served("0" * 64)
    infos = {info.metadata.hash: info for info in await store.list()}
    assert set(infos) == {first.hash, second.hash}
    assert infos[first.hash].last_served_at is not None
    assert infos[second.hash].last_served_at is None
    assert (infos[first.hash].pinned, infos[second.hash].pinned) == (False, True)


async def test_a_start_clears_away_old_leftovers_only(store: DiskStore, tmp_path: Path) -> None:
    old, fresh = tmp_path / "partial" / "a.json.1.tmp", tmp_path / "partial" / "b.json.2.tmp"
    aside = tmp_path / "quarantine" / f"{METADATA.hash}-{int(time.time()) - 90_000}"
    recent = tmp_path / "quarantine" / f"{METADATA.hash}-{int(time.time())}"
    for path in (old, fresh, aside, recent):
        path.touch()
    half, empty, mine = (tmp_path / "images" / name for name in (f"{'a' * 64}.1.tmp", "b" * 64, "c" * 64))
    for directory in (half, empty, mine):
        directory.mkdir()
        (directory / "metadata.json").touch()
    (mine / "pinned").touch()
    note, stale, young = (tmp_path / "partial" / name for name in ("d" * 64 + ".json", "e" * 64, "f" * 64))
    for path in (note, stale, young):
        path.touch()
    for path in (old, half, empty, mine, note, stale):
        os.utime(path, (1, 1))
    await store.prepare()
    assert [path.exists() for path in (old, fresh, aside, recent)] == [False, True, False, True]
    assert [path.exists() for path in (half, empty, mine, note, stale, young)] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]


async def test_leftovers_of_a_time_that_is_far_ahead_are_cleared_away_and_those_of_one_nearby_are_not(
    store: DiskStore, tmp_path: Path
) -> None:
    now = int(time.time())
    far, near = tmp_path / "partial" / "a.json.1.tmp", tmp_path / "partial" / "b.json.2.tmp"
    stale, young = tmp_path / "partial" / ("e" * 64), tmp_path / "partial" / ("f" * 64)
    for path, ahead in ((far, 7200), (near, 600), (stale, 8 * 86_400), (young, 3 * 86_400)):
        path.touch()
        os.utime(path, (now + ahead, now + ahead))
    aside, recent = (tmp_path / "quarantine" / f"{METADATA.hash}-{now + ahead}" for ahead in (90_000, 600))
    aside.touch()
    recent.touch()
    await store.prepare()
    assert [path.exists() for path in (far, stale, aside)] == [False] * 3
    assert [path.exists() for path in (near, young, recent)] == [True] * 3


async def test_a_start_removes_partials_that_nobody_has_added_to_for_a_week_and_notes_without_one(
    store: DiskStore, tmp_path: Path
) -> None:
    week = 7 * 86_400
    old, recent, in_use, orphan = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
    locked = await begin(store, dataclasses.replace(METADATA, hash=in_use))
    for name, age in ((old, week + 60), (recent, week - 60), (in_use, week + 60), ("stranger", week + 60)):
        for path in (tmp_path / "partial" / name, tmp_path / "partial" / f"{name}.json"):
            path.touch()
            os.utime(path, (time.time(), time.time() - age))
    (tmp_path / "partial" / f"{orphan}.json").touch()

    def left() -> list[str]:
        return sorted(path.name for path in (tmp_path / "partial").iterdir())

    await store.prepare()
    assert left() == [name for kept in (recent, in_use, "stranger") for name in (kept, f"{kept}.json")]
    await locked.close()
    await store.prepare()
    assert left() == [name for kept in (recent, "stranger") for name in (kept, f"{kept}.json")]


async def test_a_failing_write_moves_nothing_and_leaves_the_journal_whole(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await begin(store, METADATA)
    await journal.append([IMAGE[:1000]])
    real = os.pwritev

    def full(fd: int, pieces: list[memoryview], offset: int) -> int:
        real(fd, [pieces[0][:10]], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space"):
        await journal.append([IMAGE[1000:2000]])
    monkeypatch.undo()
    assert journal.position == 1000
    assert (tmp_path / "partial" / METADATA.hash).stat().st_size == 1000
    await journal.append([IMAGE[1000:]])
    await journal.publish()
    await journal.close()


async def test_a_short_write_is_completed(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, pieces, offset: real(fd, [b"".join(pieces)[:1500]], offset))
    journal = await begin(store, METADATA)
    await journal.append([IMAGE[:1000], IMAGE[1000:2000], IMAGE[2000:3000]])
    monkeypatch.undo()
    assert journal.file.read(0, 5000) == IMAGE[:3000]
    await journal.append([IMAGE[3000:]])
    await journal.publish()
    await journal.close()


async def test_a_stored_file_is_opened_once_for_all_and_closed_when_nobody_reads(store: DiskStore) -> None:
    await put(store, IMAGE)
    one = await store.open(METADATA.hash)
    other = await store.open(METADATA.hash)
    assert one is not None
    assert one is other
    descriptor = one.file.fd
    del one, other
    async with asyncio.timeout(10):
        while Path(f"/proc/self/fd/{descriptor}").exists():  # the thread that opened it lets go of it in its own time
            await asyncio.sleep(0.01)


async def test_what_is_appended_in_many_pieces_is_written_in_few_steps(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = bytes(range(251)) * 30_000  # 7.5 MB
    metadata = metadata_of(image)
    writes: list[int] = []
    real = os.pwritev

    def note(fd: int, pieces: list[memoryview], offset: int) -> int:
        written = real(fd, pieces, offset)
        writes.append(written)
        return written

    monkeypatch.setattr(os, "pwritev", note)
    journal = await begin(store, metadata)
    await journal.append([image[first : first + 30_001] for first in range(0, len(image), 30_001)])
    assert journal.position == len(image)
    await journal.publish()
    await journal.close()
    assert sum(writes) == len(image)
    assert all(1 << 20 <= size < (1 << 20) + 30_001 for size in writes[:-1])
    stored = await store.open(metadata.hash)
    assert stored is not None
    assert stored.file.read(0, len(image)) == image


async def test_the_kernel_begins_early_to_write_what_is_received(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = bytes(range(251)) * (5 * FLUSH // 2 // 251)
    metadata = metadata_of(image)
    begun: list[tuple[int, int]] = []

    def noted(fd: int, start: int, stop: int) -> None:
        assert os.fstat(fd).st_size >= stop
        begin_writeback(fd, start, stop)
        begun.append((start, stop))

    monkeypatch.setattr("mirror.store.disk.partial_file.begin_writeback", noted)
    journal = await begin(store, metadata)
    for offset in range(0, len(image), FLUSH // 4):
        await journal.append([image[offset : offset + FLUSH // 4]])
        while len(begun) < journal.position // FLUSH:
            await asyncio.sleep(0.001)
    assert begun == [(0, FLUSH), (FLUSH, 2 * FLUSH)]
    await journal.publish()
    await journal.close()


def test_what_has_no_pages_to_write_is_left_alone() -> None:
    with Path("/dev/null").open("w") as file:
        begin_writeback(file.fileno(), 0, FLUSH)


def test_a_file_is_replaced_as_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note.json"
    write_durably(path, b"old")

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_durably(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.json"]
    write_durably(path, b"secret", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_partial_that_another_process_puts_away_while_we_open_it_is_no_failure_of_the_store(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, exists = tmp_path / "partial" / METADATA.hash, Path.exists
    away: list[Path] = []

    def exists_a_last_time(path: Path) -> bool:
        there = exists(path)
        if path == partial and not away:
            away.append(path)
            path.unlink()
        return there

    monkeypatch.setattr(Path, "exists", exists_a_last_time)
    journal = await begin(store, METADATA)
    assert journal.ours
    await journal.close()


async def test_an_altered_image_that_is_removed_while_we_look_at_it_is_fetched(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, IMAGE)
    image = tmp_path / "images" / METADATA.hash / "image"
    image.write_bytes(IMAGE[::-1])
    rename = Path.rename

    def too_late(path: Path, target: Path) -> Path:
        if path == image:
            shutil.rmtree(image.parent)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", too_late)
    journal = await begin(store, METADATA)
    assert (journal.ours, journal.position) == (True, 0)
    await journal.close()
