"""An image is exported: what the bundle is, also for people without this software, and what bad media do to it."""

import fcntl
import hashlib
import json
import os
import re
import resource
import subprocess
from pathlib import Path

import pytest

from tests.support.air_gap import Site, put
from tests.support.archive import DockerArchive
from tests.support.commands import COMMAND, environment, on_a_terminal, one_line
from tests.support.docker_engine import DockerEngine
from tests.support.small_disk import SmallDisk

SIZE = 5 << 20
IMAGE = os.urandom(SIZE)
OLD, NEW = "2023-01-02T03:04:05Z", "2025-01-02T03:04:05Z"


@pytest.fixture
def here(tmp_path: Path) -> Site:
    """The connected site, which has an image whose name is as bad as can be."""
    site = Site(tmp_path / "here")
    put(site.store, IMAGE, filename='../../etc/pps "v1"; $(reboot).tar.gz')
    return site


@pytest.fixture
def there(tmp_path: Path) -> Site:
    """The site without a connection."""
    return Site(tmp_path / "there")


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    path = tmp_path / "stick"
    path.mkdir()
    return path


def commands_of(readme: str) -> list[str]:
    return [line.strip() for line in readme.splitlines() if line.startswith("    ")]


# What a bundle is


def test_who_has_no_pps_mirror_checks_and_joins_a_bundle_with_the_commands_of_its_readme(
    here: Site, stick: Path, tmp_path: Path
) -> None:
    bundle = here.export(stick, "--split", "2MiB")
    readme = (bundle / "README.txt").read_text()
    assert "Copy the volumes from all the disks, and SHA256SUMS, into one directory, if they are on several." in readme
    assert bundle.name == f"pps-2024-01-02-{hashlib.sha256(IMAGE).hexdigest()[:12]}"
    volumes = sorted(path.name for path in bundle.glob("*.00?"))
    assert volumes == [f"pps_v1_reboot_.tar.gz.00{number}" for number in (1, 2, 3)]
    assert [(bundle / name).stat().st_size for name in volumes] == [2 << 20, 2 << 20, 1 << 20]
    digest = hashlib.sha256(IMAGE).hexdigest()
    assert (bundle / "metadata.json").read_bytes() == (here.store / "images" / digest / "metadata.json").read_bytes()
    (sums,) = [each for each in commands_of(readme) if each.startswith("sha256sum")]
    join, check = (each for each in commands_of(readme) if each.startswith(("cat ", "echo ")))
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        ["bash", "-ec", f"{sums}\n{join}\n{check}"],
        cwd=bundle,
        env=os.environ | {"HOME": str(home), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    covered = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    joined = home / "pps_v1_reboot_.tar.gz"
    assert covered == {path.name for path in bundle.iterdir() if path.name != "SHA256SUMS"} | {str(joined)}
    assert joined.read_bytes() == IMAGE


def test_the_readme_of_an_image_that_was_not_split_loads_it_into_docker(
    tmp_path: Path, stick: Path, docker_archive: DockerArchive, docker_engine: DockerEngine
) -> None:
    here = Site(tmp_path / "here")
    put(here.store, docker_archive.path.read_bytes(), filename="pps.tar.gz")
    bundle = here.export(stick)
    assert sorted(path.name for path in bundle.iterdir()) == ["README.txt", "SHA256SUMS", "metadata.json", "pps.tar.gz"]
    wanted = [
        each
        for each in commands_of((bundle / "README.txt").read_text())
        if each.startswith(("sha256sum", "docker", "cat"))
    ]
    assert wanted == ["sha256sum -c SHA256SUMS", "docker load -i pps.tar.gz"]
    done = subprocess.run(
        ["bash", "-ec", "\n".join(wanted)],
        cwd=bundle,
        env=docker_engine.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert docker_archive.tag in done.stdout
    docker_engine.run("image", "rm", docker_archive.tag)


def test_4gib_is_made_what_fat32_takes_and_what_cannot_be_is_status_2(here: Site, stick: Path) -> None:
    done = here.run("export", "current", stick, "--split", "4GiB")
    assert done.returncode == 0
    assert "volumes of 4294967295 bytes, which FAT32 takes" in done.stdout
    for arguments, said in (
        ([stick, "--split", "some"], "--split some: expected a size such as"),
        ([stick, "--split", "0"], "a volume needs a byte"),
        ([stick, "--split", "5kB"], "999 are allowed"),
        ([stick / "missing"], "is no directory"),
        ([stick, "--sign", stick / "no-key"], "there is no such file"),
    ):
        done = here.run("export", "current", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in one_line(done.stderr)


def test_what_is_not_stored_or_not_verified_is_not_exported(here: Site, stick: Path) -> None:
    unknown = here.run("export", "abcdef", stick)
    assert unknown.returncode == 1
    assert "no stored image has a hash that begins with abcdef" in one_line(unknown.stderr)
    digest = hashlib.sha256(IMAGE).hexdigest()
    with (here.store / "images" / digest / "image").open("r+b") as file:
        file.write(b"altered")
    altered = here.run("export", "current", stick)
    assert altered.returncode == 1
    assert f"run `pps-mirror verify {digest[:12]}`" in one_line(altered.stderr)
    assert list(stick.iterdir()) == []


def test_export_in_json_is_a_list_of_the_files(here: Site, stick: Path) -> None:
    done = here.run("export", "current", stick, "--json")
    told = json.loads(done.stdout)
    assert [Path(each["path"]).name for each in told][1:] == ["metadata.json", "README.txt", "SHA256SUMS"]
    assert (told[0]["size"], told[0]["sha256"]) == (SIZE, hashlib.sha256(IMAGE).hexdigest())


def test_both_commands_draw_a_bar_on_a_terminal_and_have_examples(here: Site, there: Site, stick: Path) -> None:
    assert "/5.0 MiB" in on_a_terminal("export", "current", stick, **here.environ)
    assert "is verified and stored" in on_a_terminal("import", stick, **there.environ)
    for command in ("export", "import"):
        assert f"\n  pps-mirror {command} " in there.run(command, "--help").stdout


def test_the_bar_fits_on_a_terminal_of_80_columns_however_long_the_name_is(tmp_path: Path, stick: Path) -> None:
    here = Site(tmp_path / "here")
    put(here.store, IMAGE, filename="datarobot-portable-prediction-api-11.1.0-r1234.tar.gz")
    shown = on_a_terminal("export", "current", stick, "--split", "2MiB", COLUMNS="80", **here.environ)
    assert re.search(r"writing volume 1 of 3 \S+ 2\.0/2\.0 MiB", shown)


@pytest.mark.parametrize(("output", "said"), [("full", "No space left on device"), ("left", "")])
def test_output_that_cannot_be_written_is_not_blamed_on_the_medium(
    here: Site, stick: Path, output: str, said: str
) -> None:
    reader, left = os.pipe()
    os.close(reader)
    with os.fdopen(left, "wb") as nobody, Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "export", "current", str(stick)],
            env=environment(**here.environ),
            stdout=full if output == "full" else nobody,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    if said:
        assert re.search(f"standard output cannot be written: .*{said}", one_line(done.stderr))
    else:
        assert done.stderr == ""
    here.export(stick)


# An export that is interrupted, or has no room


def test_an_export_that_is_begun_again_keeps_what_is_right_and_writes_the_rest(here: Site, stick: Path) -> None:
    bundle = here.export(stick, "--split", "2MiB")
    first, second, third = sorted(bundle.glob("*.00?"))
    (bundle / "SHA256SUMS").unlink()
    second.rename(bundle / f"{second.name}.part")
    os.truncate(bundle / f"{second.name}.part", 1 << 20)
    with third.open("r+b") as file:
        file.seek(1000)
        file.write(b"rotten")
    before = first.stat().st_mtime_ns
    done = here.run("export", "current", stick, "--split", "2MiB")
    assert done.returncode == 0
    assert f"{first.name} (2.0 MiB) was there already, and is right" in done.stdout
    assert f"{second.name} (2.0 MiB) is written, and was read back" in done.stdout
    assert first.stat().st_mtime_ns == before
    assert b"".join(path.read_bytes() for path in (first, second, third)) == IMAGE
    assert not list(bundle.glob("*.part"))


def test_an_export_that_splits_otherwise_leaves_nothing_of_the_one_before(here: Site, stick: Path) -> None:
    here.export(stick, "--split", "1MiB")
    bundle = here.export(stick, "--split", "4MiB")
    assert sorted(path.suffix for path in bundle.iterdir() if path.name.startswith("pps_")) == [".001", ".002"]


def test_an_export_that_splits_otherwise_and_is_stopped_has_no_sums_of_the_one_before(
    here: Site, there: Site, stick: Path
) -> None:
    bundle = here.export(stick, "--split", "1MiB")
    part = bundle / "pps_v1_reboot_.tar.gz.part"
    part.mkdir()  # and so it gets no further
    assert here.run("export", "current", stick).returncode == 1
    part.rmdir()
    unfinished = there.run("import", stick)
    assert unfinished.returncode == 1
    assert "has no SHA256SUMS: it is no bundle, or its export was not finished" in one_line(unfinished.stderr)
    here.export(stick)
    assert there.run("import", stick).returncode == 0


def test_a_stick_without_room_is_refused_before_anything_is_written(here: Site, tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "small", 4 << 20) as disk:
        done = here.run("export", "current", disk.path)
        assert done.returncode == 1
        assert re.search(r"has 4\.0 MiB free, and the bundle needs 6\.0 MiB$", one_line(done.stderr).strip())
        assert not [path for path in disk.path.rglob("*") if path.is_file()]


def test_a_medium_that_does_not_say_how_large_it_is_is_written_to(here: Site, tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "share", SIZE, kind="ramfs") as disk:
        assert os.statvfs(disk.path).f_blocks == 0
        here.export(disk.path)


def test_a_stick_that_becomes_full_keeps_what_it_has_and_the_same_command_goes_on(here: Site, tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "small", 4 << 20) as disk:
        bundle = disk.path / f"pps-2024-01-02-{hashlib.sha256(IMAGE).hexdigest()[:12]}"
        bundle.mkdir()
        part = bundle / "pps_v1_reboot_.tar.gz.part"
        part.touch()
        os.truncate(part, SIZE)  # a hole, which looks like room that is taken already
        full = here.run("export", "current", disk.path)
        assert full.returncode == 1
        assert f"{disk.path} is full; what is written is kept" in one_line(full.stderr)
        kept = part.read_bytes()
        assert 2 << 20 <= len(kept) < SIZE
        assert IMAGE.startswith(kept)
        disk.remount("size=8m")
        done = here.run("export", "current", disk.path)
        assert (done.returncode, done.stderr) == (0, "")
        assert (bundle / part.stem).read_bytes() == IMAGE


def test_a_file_system_that_takes_no_large_file_is_told_from_a_full_one(here: Site, stick: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "export", "current", str(stick)],
        env=environment(**here.environ),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20)),
    )
    assert done.returncode == 1
    assert "takes no file that large (FAT32 takes 4 GiB less a byte): give --split 4GiB" in one_line(done.stderr)
    (part,) = stick.glob("pps-*/*.part")
    kept = part.read_bytes()
    assert kept
    assert IMAGE.startswith(kept)
    here.export(stick, "--split", "3MiB")
    assert not part.exists()


def test_two_exports_do_not_write_into_one_directory(here: Site, stick: Path) -> None:
    bundle = here.export(stick)
    fd = os.open(bundle, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = here.run("export", "current", stick)
    finally:
        os.close(fd)
    assert done.returncode == 1
    assert f"another export writes into {bundle} just now" in one_line(done.stderr)


def test_endless_files_on_a_stick_are_not_read_to_their_end(here: Site, stick: Path) -> None:
    bundle = here.export(stick)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    for name in before:
        os.truncate(bundle / name, 1 << 40)
    here.export(stick)
    assert {path.name: path.stat().st_size for path in bundle.iterdir()} == {
        name: len(data) for name, data in before.items()
    }
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


@pytest.mark.parametrize("in_the_way", ["symlink", "pipe", "directory"])
def test_what_lies_in_the_way_on_a_stick_is_not_followed(
    here: Site, stick: Path, tmp_path: Path, in_the_way: str
) -> None:
    bundle = here.export(stick)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    image = next(path for path in bundle.iterdir() if path.name.startswith("pps_"))
    image.unlink()
    part = image.with_name(image.name + ".part")
    match in_the_way:
        case "symlink":
            part.symlink_to(victim)
        case "pipe":
            os.mkfifo(part)
        case _:
            part.mkdir()
    done = here.run("export", "current", stick)
    assert done.returncode == 1
    assert "is in the way: it is no plain file" in one_line(done.stderr)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(("umask", "closed"), [("022", False), ("077", True), ("027", True)])
def test_a_bundle_that_only_its_owner_can_read_says_what_to_do_before_somebody_else_carries_it(
    here: Site, stick: Path, umask: str, closed: bool
) -> None:
    done = subprocess.run(
        ["sh", "-c", f'umask {umask}; exec "$@"', "sh", *COMMAND, "export", "current", str(stick)],
        env=environment() | here.environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (bundle,) = stick.iterdir()
    said = [line for line in done.stdout.splitlines() if "chmod" in line]
    assert len(said) == closed
    if closed:
        command = said[0].partition(": ")[2].partition(",")[0]
        subprocess.run(["sh", "-ec", command], check=True, timeout=20)
        assert bundle.stat().st_mode & 0o055 == 0o055
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in bundle.iterdir())
