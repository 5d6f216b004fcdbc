"""An image that was carried across an air gap is imported, and a mirror serves it."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.air_gap import Site, put
from tests.support.commands import COMMAND, environment, one_line, run
from tests.support.downloads import fetch
from tests.support.fixtures import Sections
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess

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


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[MirrorProcess]:
    """A running mirror of two processes, without upstream and without an image."""
    sections: Sections = {"server": {"workers": 2}, "auth": {"mode": "open"}}
    with ForkedMirror(tmp_path / "mirror", "", sections) as mirror:
        yield mirror


def bring(mirror: MirrorProcess, path: Path, complaint: str = "") -> str:
    """Import beside a running mirror; what is said. It complains of nothing, or in one line."""
    done = run("import", path, "-c", mirror.config_file)
    assert done.returncode == 0, done.stderr
    assert complaint in done.stderr
    assert done.stderr.count("\n") == bool(complaint)
    return done.stdout


def served(mirror: MirrorProcess) -> set[str]:
    """The hashes of what clients get who name none: of both processes, as many requests go to either."""
    return {fetch(mirror.image_url).sha256 for _ in range(8)}


def test_a_running_mirror_serves_what_is_imported_at_once_and_the_newest_image_is_current(
    mirror: MirrorProcess, tmp_path: Path
) -> None:
    here = Site(tmp_path / "here")
    newer = os.urandom(SIZE)
    second, first = put(here.store, newer, created=NEW), put(here.store, IMAGE)
    old = put(here.store, b"an old image", created=OLD)
    bundles = {digest: here.export(tmp_path / digest[:6], name=digest[:12]) for digest in (first, second, old)}
    assert fetch(mirror.image_url).status == 404
    assert "it is the current image" in bring(mirror, bundles[first])
    assert served(mirror) == {first}
    assert "it is the current image" in bring(mirror, bundles[second])
    assert served(mirror) == {second}
    assert "another image stays the current one" in bring(mirror, bundles[old])
    assert served(mirror) == {second}
    by_hash = fetch(f"{mirror.url}/mirror/v1/images/{old}/")
    assert (by_hash.sha256, by_hash.cache_status) == (old, "pps-mirror; hit")
    assert "is stored already" in bring(mirror, bundles[old])


def test_an_import_into_a_store_that_knew_another_current_image_makes_the_newer_one_current(
    mirror: MirrorProcess, tmp_path: Path
) -> None:
    here = Site(tmp_path / "here")
    second, first = put(here.store, b"second", created=NEW), put(here.store, b"first")
    bring(mirror, here.export(tmp_path / "a", name=first[:12]))
    metadata = (mirror.store / "images" / first / "metadata.json").read_text()
    note = mirror.store / "current.json"
    note.write_text(json.dumps({"metadata": metadata, "fetchedAt": "2024-02-01T00:00:00+00:00"}))
    assert served(mirror) == {first}
    assert "it is the current image" in bring(mirror, here.export(tmp_path / "b", name=second[:12]))
    assert served(mirror) == {second}


def test_an_import_becomes_current_where_the_current_image_never_came(mirror: MirrorProcess, tmp_path: Path) -> None:
    here = Site(tmp_path / "here")
    announced, first = put(here.store, b"announced", created=NEW), put(here.store, b"first")
    metadata = (here.store / "images" / announced / "metadata.json").read_text()
    note = {"metadata": metadata, "fetchedAt": "2025-02-01T00:00:00+00:00"}
    (mirror.store / "current.json").write_text(json.dumps(note))
    assert fetch(mirror.image_url).status == 404
    assert "it is the current image" in bring(mirror, here.export(tmp_path / "a", name=first[:12]))
    assert served(mirror) == {first}


def test_a_note_of_what_is_current_that_makes_no_sense_is_complained_of_once_and_the_newest_image_served(
    mirror: MirrorProcess, tmp_path: Path
) -> None:
    (mirror.store / "current.json").write_text("nonsense")
    here = Site(tmp_path / "here")
    first = put(here.store, b"first")
    assert "it is the current image" in bring(mirror, here.export(tmp_path / "a"), complaint="is left alone")
    assert served(mirror) == {first}
    assert 1 <= mirror.settled.log().count("current.json is left alone") <= 2  # of two processes


def test_volumes_are_taken_from_several_directories_in_any_order_and_missing_ones_are_named(
    here: Site, there: Site, stick: Path, tmp_path: Path
) -> None:
    bundle = here.export(stick, "--split", "1MiB")
    volumes = sorted(bundle.glob("*.00?"))
    disks = [tmp_path / f"dvd{number}" for number in (1, 2)]
    for number, volume in enumerate(volumes):
        disk = disks[number % 2]
        disk.mkdir(exist_ok=True)
        shutil.copy(volume, disk)
    shutil.copy(bundle / "SHA256SUMS", disks[1])
    shutil.copy(bundle / "metadata.json", disks[1])
    without = there.run("import", disks[1])
    assert without.returncode == 1
    names = [volumes[number].name for number in (0, 2, 4)]
    assert f"{names[0]}, {names[1]} and {names[2]} are missing" in one_line(without.stderr)
    done = there.run("import", *disks)
    assert (done.returncode, done.stderr) == (0, "")
    assert there.images() == here.images()


def test_sums_that_were_edited_on_windows_are_taken_by_import_as_by_sha256sum(
    here: Site, there: Site, stick: Path
) -> None:
    bundle = here.export(stick)
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    edited = [f"{line[:64].upper()}{line[64:]}\r\n" for line in [*lines, ""]]
    (bundle / "SHA256SUMS").write_bytes("".join(edited).encode())
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)
    done = there.run("import", stick)
    assert (done.returncode, done.stderr) == (0, "")
    assert there.images() == here.images()


def test_every_bad_volume_is_named_at_once_and_the_store_is_not_touched(here: Site, there: Site, stick: Path) -> None:
    bundle = here.export(stick, "--split", "1MiB")
    _, second, third, _, fifth = sorted(bundle.glob("*.00?"))
    good = second.read_bytes()
    second.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.truncate(third, 1000)
    fifth.write_bytes(bytes(SIZE + 1))
    done = there.run("import", stick, "--json")
    assert done.returncode == 1
    said = one_line(done.stderr)
    assert "3 of 5 volumes are bad" in said
    assert f"{second} (1048576 bytes): its sha256 is {hashlib.sha256(second.read_bytes()).hexdigest()}, and" in said
    assert f"should be {hashlib.sha256(good).hexdigest()}; {third} (1000 bytes): its sha256" in said
    assert f"{fifth} has {SIZE + 1} bytes, more than the whole image" in said
    assert there.is_untouched()
    (told,) = json.loads(done.stdout)
    assert [part["good"] for part in told["parts"]] == [True, False, False, True, False]
    assert not told["stored"]


def test_one_good_copy_of_each_volume_is_enough(here: Site, there: Site, stick: Path, tmp_path: Path) -> None:
    bundle = here.export(stick, "--split", "2MiB")
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    for directory, number in ((bundle, 1), (copy, 2)):
        with next(directory.glob(f"*.00{number}")).open("r+b") as file:
            file.write(b"rotten")
    done = there.run("import", bundle, copy, "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert (told["hash"], told["stored"], told["current"]) == (hashlib.sha256(IMAGE).hexdigest(), True, True)
    assert [Path(part["path"]).parent for part in told["parts"]] == [copy, bundle, bundle]


def test_an_import_goes_on_where_one_was_stopped_and_does_not_read_what_the_store_has(
    here: Site, there: Site, stick: Path
) -> None:
    bundle = here.export(stick, "--split", "1MiB")
    digest = hashlib.sha256(IMAGE).hexdigest()
    partial = there.store / "partial" / digest
    partial.parent.mkdir(parents=True)
    partial.write_bytes(IMAGE[: SIZE // 2])
    next(bundle.glob("*.001")).write_bytes(bytes(1 << 20))  # it would be refused if it was looked at
    done = there.run("import", stick)
    assert (done.returncode, done.stderr) == (0, "")
    assert "checking: 0 B of 3.0 MiB" in done.stdout
    assert (there.store / "images" / digest / "image").read_bytes() == IMAGE


def test_an_import_begins_anew_when_what_the_store_had_was_wrong(here: Site, there: Site, stick: Path) -> None:
    here.export(stick, "--split", "1MiB")
    digest = hashlib.sha256(IMAGE).hexdigest()
    partial = there.store / "partial" / digest
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(SIZE // 2))
    done = there.run("import", stick)
    assert done.returncode == 0, done.stderr
    assert "what the store had of this image already was wrong: beginning anew" in done.stdout
    assert (there.store / "images" / digest / "image").read_bytes() == IMAGE


def test_an_import_follows_who_receives_the_image_already_and_can_be_stopped(
    here: Site, there: Site, stick: Path
) -> None:
    here.export(stick)
    digest = hashlib.sha256(IMAGE).hexdigest()
    partial = there.store / "partial" / digest
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as file, ExitStack() as stack:
        file.write(IMAGE[:1000])
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        process = stack.enter_context(
            subprocess.Popen(
                ["env", "--default-signal=INT", *COMMAND, "import", str(stick)],
                env=environment(**there.environ),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        assert process.stdout is not None
        assert process.stderr is not None
        said = ""
        while "following it" not in said:
            said += process.stdout.readline()
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        assert "that is kept, and the same command goes on from there" in process.stdout.read()
        assert process.wait() == 130
        assert process.stderr.read() == ""
    assert there.run("import", stick).returncode == 0
    assert there.images() == {digest}


def test_a_lone_image_is_imported_with_its_metadata_and_usage_is_explained(
    here: Site, there: Site, tmp_path: Path
) -> None:
    digest = hashlib.sha256(IMAGE).hexdigest()
    image, metadata = tmp_path / "image.tar.gz", tmp_path / "metadata.json"
    image.write_bytes(IMAGE)
    shutil.copy(here.store / "images" / digest / "metadata.json", metadata)
    described = tmp_path / "described"
    shutil.copy(metadata, described)
    for arguments in ([image], [metadata], [described, "--metadata", described]):
        done = there.run("import", *arguments)
        assert done.returncode == 2
        assert "expected a bundle, or an image with its metadata" in one_line(done.stderr)
    image.write_bytes(IMAGE[:-1] + b"x")
    wrong = there.run("import", metadata, image)
    assert wrong.returncode == 1
    assert f"{image} ({SIZE} bytes): its sha256 is" in one_line(wrong.stderr)
    assert there.is_untouched()
    os.truncate(image, SIZE - 1)
    short = there.run("import", metadata, image)
    assert f"{image} has {SIZE - 1} bytes of the {SIZE} that metadata promises" in one_line(short.stderr)
    image.write_bytes(IMAGE)
    done = there.run("import", image, "--metadata", described)
    assert (done.returncode, done.stderr) == (0, "")
    assert there.images() == {digest}


def test_lone_volumes_are_imported_in_their_order_and_a_missing_one_is_named(
    here: Site, there: Site, tmp_path: Path
) -> None:
    bundle = here.export(tmp_path / "stick", "--split", "2MiB")
    first, second, third = sorted(bundle.glob("*.00?"))
    (bundle / "SHA256SUMS").unlink()
    unfinished = there.run("import", bundle)
    assert unfinished.returncode == 1
    assert "has no SHA256SUMS: it is no bundle, or its export was not finished" in one_line(unfinished.stderr)
    missing = there.run("import", third, first, bundle / "metadata.json")
    assert f"{second.name} is missing" in one_line(missing.stderr)
    done = there.run("import", third, first, bundle / "metadata.json", second)
    assert (done.returncode, done.stderr) == (0, "")
    assert there.images() == {hashlib.sha256(IMAGE).hexdigest()}


def test_a_stick_with_two_bundles_is_asked_which(here: Site, there: Site, stick: Path) -> None:
    put(here.store, b"another", created=OLD)
    assert here.run("export", "current", stick).returncode == 0
    assert here.run("export", hashlib.sha256(b"another").hexdigest(), stick).returncode == 0
    done = there.run("import", stick)
    assert done.returncode == 1
    assert f"{stick} has 2 bundles, name one: pps-2023-01-02-" in one_line(done.stderr)


def test_a_store_without_room_says_so_and_a_store_with_upstream_leaves_current_to_it(
    here: Site, tmp_path: Path, stick: Path
) -> None:
    here.export(stick)
    small = Site(tmp_path / "small", PPS_MIRROR__STORE__MAX_SIZE="1MiB")
    done = small.run("import", stick)
    assert done.returncode == 1
    assert "this image is larger than all of the mirror's store may be" in one_line(done.stderr)
    connected = Site(tmp_path / "connected", PPS_MIRROR__UPSTREAM__URL="http://127.0.0.1:9")
    done = connected.run("import", stick)
    assert done.returncode == 0
    assert "when upstream says that it is the current one" in done.stdout
    assert not (connected.store / "current.json").exists()
