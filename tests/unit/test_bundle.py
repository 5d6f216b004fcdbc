"""The format of a bundle, and files on a medium that does not keep what it was given."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle.format import (
    FAT32,
    BadBundle,
    Listed,
    Sums,
    image_name,
    in_order,
    is_name,
    lacking,
    parse_split,
    volumes,
    write_sums,
)
from mirror.bundle.medium import MediumFile
from mirror.bundle.readme import leaflet
from mirror.model.errors import MirrorError, UsageError
from tests.support.scripted import metadata_of

IMAGE = metadata_of(b"an image of some bytes")
A, B, C = ("abc"[number] * 64 for number in range(3))


@given(st.text(max_size=300))
def test_whatever_upstream_calls_an_image_its_name_in_a_bundle_is_plain(filename: str) -> None:
    name = image_name(replace(IMAGE, filename=filename))
    assert is_name(name)
    assert len(name) <= 120
    assert not name.endswith(".")
    assert leaflet(replace(IMAGE, filename=filename), volumes(IMAGE, None)).isascii()


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("pps-1.2.tar.gz", "pps-1.2.tar.gz"),
        ("/var/lib/pps.tar.gz", "pps.tar.gz"),
        ("C:\\images\\pps.tar.gz", "pps.tar.gz"),
        ("-rf *", "rf_"),
        ("..", f"{IMAGE.hash[:12]}.tar.gz"),
        ("sha256sums", f"{IMAGE.hash[:12]}.tar.gz"),
        ("NUL.tar.gz", f"{IMAGE.hash[:12]}.tar.gz"),
        ("Bild größer.tar", "Bild_gr_er.tar"),
    ],
)
def test_a_name_is_made_safe_for_every_file_system_and_shell(filename: str, name: str) -> None:
    assert image_name(replace(IMAGE, filename=filename)) == name


@given(st.integers(1, 10**15), st.integers(1, 10**15))
def test_volumes_are_the_image_without_a_gap_and_none_is_too_large(size: int, split: int) -> None:
    try:
        made = volumes(replace(IMAGE, size=size), split)
    except UsageError:
        assert size > 999 * split
        return
    assert [made[0].start, *(volume.stop for volume in made)] == [volume.start for volume in made] + [size]
    assert all(0 < volume.size <= split for volume in made)
    names = [volume.name for volume in made]
    assert list(in_order(sorted(names, reverse=True))) == names
    assert not lacking(names)


def test_4gib_means_what_fat32_takes_and_other_sizes_mean_themselves() -> None:
    assert [parse_split(size) for size in ("4GiB", "4294967296", "4.7GB", "5GiB", "1")] == [
        FAT32,
        FAT32,
        4_700_000_000,
        5 << 30,
        1,
    ]


def test_sums_are_read_as_they_were_written_whatever_their_order_and_mode() -> None:
    listed = [Listed("x.002", B), Listed("README.txt", C), Listed("x.001", A), Listed("metadata.json", C)]
    for raw in (write_sums(listed), write_sums(listed).replace(b" *", b"  ")):
        sums = Sums.parse(raw)
        assert sums == Sums([Listed("x.001", A), Listed("x.002", B)], C, C)


def test_sums_that_an_editor_has_been_at_are_read_as_sha256sum_reads_them() -> None:
    listed = [Listed("x", A), Listed("README.txt", B), Listed("metadata.json", C)]
    edited = write_sums(listed).replace(A.encode(), A.upper().encode()).replace(b"\n", b"\r\n") + b"\r\n"
    assert Sums.parse(edited) == Sums([Listed("x", A)], C, B)
    assert Sums.parse(b"\xef\xbb\xbf" + edited) == Sums([Listed("x", A)], C, B)
    with pytest.raises(BadBundle, match="an editor has saved it as UTF-16: save it as UTF-8"):
        Sums.parse(edited.decode().encode("utf-16"))


@pytest.mark.parametrize(
    ("names", "missing"),
    [(["x.003", "x.001"], ["x.002"]), (["x.003"], []), (["x"], []), (["x.002", "x.004"], ["x.001", "x.003"])],
)
def test_missing_volumes_are_found(names: list[str], missing: list[str]) -> None:
    assert lacking(names) == missing


@pytest.mark.parametrize("names", [["x.001", "y.002"], ["x.001", "x"], ["x", "y"], []])
def test_what_is_not_of_one_image_is_refused(names: list[str]) -> None:
    with pytest.raises(BadBundle):
        in_order(names)


def written(path: Path, data: bytes) -> MediumFile:
    file = MediumFile(path, len(data))
    file.put(0, memoryview(data))
    return file


def test_a_medium_that_gives_back_other_bytes_is_found_and_the_file_gets_no_name(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    for spoil in (b"goof", b"goo"):
        file = written(path, b"good")
        position = file.settle()
        (tmp_path / "volume.part").write_bytes(spoil)
        with pytest.raises(MirrorError, match="the medium does not give back what was written to it"):
            while position < 4:
                position = file.read_back(position)
            file.name()
        with pytest.raises(MirrorError):
            file.name()
        file.close()
        assert not path.exists()
        (tmp_path / "volume.part").unlink()


def test_a_file_that_is_there_already_is_compared_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    for expected in (False, True):
        file = written(path, b"good")
        assert file.kept is expected
        position = file.settle()
        while position < 4:
            position = file.read_back(position)
        file.name()
        file.close()
        assert path.read_bytes() == b"good"
