"""Hashing stored images again: what is found, what is trusted after it, and what it leaves alone."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.store.disk.store import DiskStore
from mirror.store.disk.verification import STEP, Verdict
from tests.support.scripted import disk_store, put

IMAGE = os.urandom(STEP + 4097)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DiskStore]:
    async with disk_store(tmp_path) as store:
        yield store


def flip(path: Path, offset: int) -> None:
    """Change one bit as a failing disk would: the file's times stay."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


async def stored_file(store: DiskStore) -> Path:
    return store.root / "images" / (await put(store, IMAGE)).hash / "image"


async def test_a_good_image_is_good_whatever_its_length_and_is_trusted_from_then_on(store: DiskStore) -> None:
    for length in (1, 4096, STEP, STEP + 1, len(IMAGE)):
        metadata = await put(store, IMAGE[:length])
        (store.root / "images" / metadata.hash / "verified").unlink()
        seen: list[int] = []
        assert (await store.verify(metadata.hash, progress=seen.append)).verdict is Verdict.GOOD
        assert seen == [STEP] * (length > STEP)
        assert await store.open(metadata.hash) is not None


@pytest.mark.parametrize("offset", [0, STEP, len(IMAGE) - 1])
async def test_one_rotten_bit_is_found_although_the_file_looks_the_same(store: DiskStore, offset: int) -> None:
    path = await stored_file(store)
    flip(path, offset)
    assert await store.open(path.parent.name) is not None  # nothing shows
    verified = await store.verify(path.parent.name)
    assert (verified.verdict, verified.bad) == (Verdict.WRONG, True)
    assert await store.open(path.parent.name) is None
    assert await store.list() == []
    (aside,) = (store.root / "quarantine").iterdir()
    assert f"quarantine/{aside.name}" in verified.detail
    await put(store, IMAGE)
    assert await store.open(path.parent.name) is not None


async def test_a_read_error_counts_when_it_comes_twice(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await stored_file(store)
    real, failures = os.preadv, [1]

    def fail(fd: int, buffers: list[memoryview], offset: int) -> int:
        if failures[0]:
            failures[0] -= 1
            raise OSError(5, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    assert (await store.verify(path.parent.name)).verdict is Verdict.GOOD
    failures[0] = 2
    verified = await store.verify(path.parent.name)
    assert (verified.verdict, verified.bad) == (Verdict.UNREADABLE, True)
    assert "Input/output error" in verified.detail
    assert await store.open(path.parent.name) is None


async def test_a_file_system_that_cannot_read_past_the_page_cache_is_read_through_it(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await stored_file(store)
    real = os.open

    def refuse(name: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(name, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert (await store.verify(path.parent.name)).verdict is Verdict.GOOD


async def test_what_is_not_whole_is_bad_and_stays_to_be_continued(store: DiskStore) -> None:
    path = await stored_file(store)
    os.truncate(path, 5)
    verified = await store.verify(path.parent.name)
    assert (verified.verdict, verified.bad) == (Verdict.SHORT, True)
    assert path.stat().st_size == 5


async def test_what_changes_or_goes_while_it_is_read_is_neither_good_nor_bad(store: DiskStore) -> None:
    path = await stored_file(store)
    verified = await store.verify(path.parent.name, progress=lambda _: os.utime(path, (1, 1)))
    assert (verified.verdict, verified.bad) == (Verdict.CHANGED, False)
    verified = await store.verify(path.parent.name, progress=lambda _: path.unlink())
    assert (verified.verdict, verified.bad) == (Verdict.GONE, False)
    assert (await store.verify("0" * 64)).verdict is Verdict.GONE


async def test_neither_cold_pages_are_brought_into_memory_nor_hot_ones_driven_out(store: DiskStore) -> None:
    path = await stored_file(store)
    image = await store.open(path.parent.name)
    assert image is not None
    os.posix_fadvise(image.file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    before = image.file.resident(0, len(IMAGE))  # a file system in memory lets nothing go
    await store.verify(path.parent.name)
    assert image.file.resident(0, len(IMAGE)) == before
    image.file.read(0, len(IMAGE))
    await store.verify(path.parent.name)
    assert image.file.resident(0, len(IMAGE))


async def test_the_rate_is_kept(store: DiskStore) -> None:
    path = await stored_file(store)
    began = time.monotonic()
    await store.verify(path.parent.name, rate=STEP / 0.3)
    assert time.monotonic() - began >= 0.29
