"""An index is trusted only if it is what was written for this image; and it goes where its image goes."""

import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.registry.blob_reader import read
from mirror.registry.index import ArchiveIndex, NotAnArchive
from mirror.registry.indexer import Stopped, build
from mirror.registry.saved_index import load
from mirror.registry.seek_index import SPACING, DamagedIndex
from mirror.store.disk.verification import Verdict
from tests.support.layouts import File, Layout, Link, archive_files, image_config, make_tar, sha256
from tests.support.registry import Stored, stored, zipped
from tests.support.scripted import disk_store, put

LAYER = make_tar({"opt/model": File(random.Random(3).randbytes(3 * SPACING // 2) + b"text " * 4_000_000)})
"""Long enough for a few points in an archive."""


def archive(layout: Layout = Layout.CRANE, layers: tuple[bytes, ...] = (LAYER,)) -> bytes:
    return zipped(make_tar(archive_files(layout, layers, ["a/b:1"])), 1)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    with stored(tmp_path_factory.mktemp("image"), archive()) as found:
        yield found


@pytest.fixture(scope="module")
def index(image: Stored) -> ArchiveIndex:
    return image.build()


def test_what_was_saved_is_what_was_made(image: Stored, index: ArchiveIndex) -> None:
    loaded = image.load()
    assert loaded is not None
    assert loaded.seek is not None
    assert loaded.seek.points >= 1
    assert (loaded.manifest, loaded.blobs, loaded.repo_tags) == (index.manifest, index.blobs, index.repo_tags)
    for each in (index, loaded):
        assert f"sha256:{sha256(image.read(each, each.layers[0]))}" == index.layers[0].digest


def test_a_range_anywhere_is_read_from_a_point(image: Stored, index: ArchiveIndex) -> None:
    at_random, layer = random.Random(4), index.layers[0]
    whole = image.read(index, layer)
    for _ in range(10):
        start = at_random.randrange(len(whole))
        stop = min(len(whole), start + at_random.randrange(1_000_000))
        assert image.read(index, layer, start, stop) == whole[start:stop]


def test_the_seek_index_is_half_a_percent_of_the_archive_at_most(image: Stored, index: ArchiveIndex) -> None:
    size = (image.directory / "seek-index").stat().st_size
    assert 0 < size <= image.metadata.size * 0.005


@pytest.mark.parametrize("plain", [b"", b"a word, another one, and so on: 0123456789\n"])
def test_the_seek_index_of_what_compresses_well_is_as_small(plain: bytes, tmp_path: Path) -> None:
    words = random.Random(6).choices([plain + b"%d" % number for number in range(1000)], k=700_000)
    layer = b" ".join(words) + bytes(8 * SPACING)
    with stored(tmp_path, archive(Layout.OCI, (layer,))) as image:
        index = image.build()
        assert index.seek is not None
        assert index.seek.points >= 2
        assert (image.directory / "seek-index").stat().st_size <= image.metadata.size * 0.005
        start = index.layers[0].size - 20 * SPACING // 10
        assert set(image.read(index, index.layers[0], start, start + 1000)) <= {0, 255}


def test_many_threads_read_one_index(image: Stored, index: ArchiveIndex) -> None:
    layer = index.layers[0]
    whole = image.read(index, layer)
    wrong: list[int] = []

    def work(seed: int) -> None:
        start = random.Random(seed).randrange(len(whole))
        if image.read(index, layer, start) != whole[start:]:
            wrong.append(start)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_index_that_is_damaged_in_any_place_is_made_again(image: Stored, index: ArchiveIndex) -> None:
    at_random = random.Random(5)
    for name in ("registry.json", "seek-index"):
        path = image.directory / name
        good = path.read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            match at_random.randrange(3):
                case 0:
                    bad[at_random.randrange(len(bad))] ^= 1 << at_random.randrange(8)
                case 1:
                    del bad[at_random.randrange(len(bad)) :]
                case 2:
                    bad += b"\0"
            path.write_bytes(bad)
            loaded = image.load()
            assert loaded is None or (loaded.manifest, loaded.blobs) == (index.manifest, index.blobs)
            if name == "seek-index":
                assert loaded is None
        path.unlink()
        assert image.load() is None
        path.write_bytes(good)
    assert image.load() is not None


def test_an_index_of_another_image_or_format_is_made_again(
    image: Stored, index: ArchiveIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stored(tmp_path, archive(Layout.OCI)) as other:
        other.build()
        for name in ("registry.json", "seek-index"):
            there, mine = other.directory / name, image.directory / name
            kept = mine.read_bytes()
            mine.write_bytes(there.read_bytes())
            assert image.load() is None
            mine.write_bytes(kept)
    assert image.load() is not None
    monkeypatch.setattr("mirror.registry.saved_index.FORMAT", 2)
    assert image.load() is None


def test_a_window_that_changes_under_an_open_index_gives_no_wrong_bytes(image: Stored, index: ArchiveIndex) -> None:
    loaded = image.load()
    assert loaded is not None
    layer = loaded.layers[0]
    path = image.directory / "seek-index"
    good = path.read_bytes()
    try:
        with path.open("r+b") as file:
            file.write(bytes(1000))
        with pytest.raises(DamagedIndex):
            image.read(loaded, layer, layer.size - 1)
    finally:
        with path.open("r+b") as file:
            file.write(good)


def test_an_archive_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    with stored(tmp_path, archive()) as image:
        index = image.build()
        os.truncate(image.directory / "image", image.metadata.size // 2)
        with pytest.raises(DamagedIndex):
            image.read(index, index.layers[0])


def test_a_refusal_is_forgotten_when_there_is_another_file(tmp_path: Path) -> None:
    right = archive(layers=(make_tar({"etc/hostname": File(b"pps\n")}),))
    with stored(tmp_path, right) as image:
        path = image.directory / "image"
        path.write_bytes(bytes([right[0] ^ 1]) + right[1:])  # one bit has rotted
        with pytest.raises(NotAnArchive):
            image.build()
        with pytest.raises(NotAnArchive):
            image.load()
        path.unlink()
        path.write_bytes(right)
        assert image.load() is None


def test_a_refusal_is_remembered_until_the_format_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stored(tmp_path, b"no archive") as image:
        with pytest.raises(NotAnArchive):
            image.build()
        with pytest.raises(NotAnArchive, match="neither a tar nor gzip"):
            image.load()
        monkeypatch.setattr("mirror.registry.saved_index.FORMAT", 2)
        assert image.load() is None


def test_when_it_is_stopped_nothing_is_left(tmp_path: Path) -> None:
    with stored(tmp_path, archive()) as image:
        asked = iter(range(1000))
        with pytest.raises(Stopped):
            build(image.fd, image.directory, image.metadata, stop=lambda: next(asked) > 20)
        assert [path.name for path in image.directory.iterdir()] == ["image"]
        assert image.build().layers


def test_progress_goes_from_the_beginning_to_the_end(tmp_path: Path) -> None:
    with stored(tmp_path, archive()) as image:
        told: list[int] = []
        image.build(told.append)
        assert told == sorted(told)
        assert told[0] < image.metadata.size / 10
        assert image.metadata.size * 0.9 < told[-1] <= image.metadata.size


SECOND = make_tar({"second": File(b"2")})
SECOND_ID = sha256(image_config([SECOND]))


def two_images() -> bytes:
    """Two images in one archive."""
    files: dict[str, File | Link] = {}
    manifest: list[object] = []
    for layer, tag in ((make_tar({"first": File(b"1")}), "first:1"), (SECOND, "second:1")):
        files |= archive_files(Layout.CLASSIC, [layer], [tag])
        document = files["manifest.json"]
        assert isinstance(document, File)
        manifest += json.loads(document.content)
    return make_tar(files | {"manifest.json": File(json.dumps(manifest).encode())})


@pytest.mark.parametrize(
    ("named", "tag", "warns"),
    [
        (SECOND_ID, "second:1", False),
        (f"sha256:{SECOND_ID}", "second:1", False),
        (SECOND_ID.upper(), "second:1", False),
        (None, "first:1", False),
        ("nonsense", "first:1", False),
        ("f" * 64, "first:1", True),
    ],
)
def test_the_image_with_the_id_that_upstream_gives_is_taken(
    named: str | None, tag: str, warns: bool, tmp_path: Path
) -> None:
    with stored(tmp_path, two_images(), named) as image:
        index = image.build()
        assert index.repo_tags == (tag,)
        assert bool(index.warnings) == warns


async def test_the_index_goes_with_its_image_and_keeps_nothing_from_it(tmp_path: Path) -> None:
    content = archive(layers=(make_tar({"etc/hostname": File(b"pps\n")}),))
    async with disk_store(tmp_path) as store:
        metadata = await put(store, content)
        directory = tmp_path / "images" / metadata.hash
        with (directory / "image").open("rb") as file:
            index = build(file.fileno(), directory, metadata)
            assert (await store.verify(metadata.hash)).verdict is Verdict.GOOD
            assert [info.metadata.hash for info in await store.list()] == [metadata.hash]
            assert load(directory, metadata) is not None
            parts = read(file.fileno(), index.seek, index.layers[0], 0, index.layers[0].size)
            assert await store.remove(metadata.hash)
            assert not directory.exists()
            assert f"sha256:{sha256(b''.join(parts))}" == index.layers[0].digest
        assert load(directory, metadata) is None


async def test_what_a_crash_left_of_an_index_is_cleared_away(tmp_path: Path) -> None:
    async with disk_store(tmp_path) as store:
        metadata = await put(store, b"an image")
    left = tmp_path / "images" / metadata.hash / "seek-index.0123456789abcdef.tmp"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    async with disk_store(tmp_path) as store:
        assert not left.exists()
        assert await store.has(metadata.hash)
