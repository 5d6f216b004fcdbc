"""Guarantee 8 up to a fill's last step: what is verified and cannot get its name is given to clients all the same."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, Fault, Simulator
from tests.support.admin import degraded
from tests.support.by_hand import lay_out
from tests.support.commands import COMMAND, environment, run
from tests.support.downloads import AUTHORIZED, BYPASS, Download, at_once, fetch
from tests.support.fixtures import SIZE, Sections
from tests.support.forked import ForkedMirror
from tests.support.needs import needs
from tests.support.processes import MirrorProcess, eventually
from tests.support.rights import ordinary_mirror, repair
from tests.support.small_disk import SmallDisk

MIB = 1 << 20

Cause = Callable[[Path], None]


def mode(images: Path) -> None:
    images.chmod(0o555)


def shut(images: Path) -> None:
    images.chmod(0)


def owner(images: Path) -> None:
    os.chown(images, 65534, 65534)


def read_only_mount(images: Path) -> None:
    subprocess.run([needs("mount", "apt-get install mount", root=True), "--bind", images, images], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", images], check=True)


@pytest.mark.parametrize("cause", [mode, shut, owner, read_only_mount])
def test_an_image_that_cannot_get_its_name_is_fetched_once_and_given_to_all_until_it_gets_it(
    tmp_path: Path, simulator: Simulator, cause: Cause
) -> None:
    if cause is owner and os.geteuid() != 0:
        needs("chown", "", root=True)
    whole = simulator.image_sha256("first")
    with ordinary_mirror(tmp_path / "mirror", simulator) as mirror:
        images = mirror.store / "images"
        cause(images)
        outcomes = at_once(5, lambda: fetch(mirror.image_url))
        assert {(outcome.ended, outcome.sha256) for outcome in outcomes} == {("complete", whole)}
        for _ in range(3):  # whoever comes later costs no transfer
            outcome = fetch(mirror.image_url)
            assert (outcome.ended, outcome.sha256, outcome.cache_status) == ("complete", whole, BYPASS)
        assert any("images/" in said or "fails" in said for said in degraded(mirror))
        assert mirror.settled.actions().count("store.failing") == 1
        assert list(images.iterdir()) == []
        with Download(mirror.image_url, headers=AUTHORIZED | {"Range": "bytes=-100"}) as last:
            assert (last.status, last.read_all().body) == (206, simulator.read("first", SIZE - 100))
        mirror.stop()
        mirror.start()  # nor does a restart
        assert fetch(mirror.image_url).sha256 == whole
        assert "fill.went_on" not in mirror.settled.actions()  # nor is it hashed again, each time: it was found right
        repair(images)
        assert fetch(mirror.image_url).sha256 == whole
        assert simulator.counters().image_requests == 1
        assert degraded(mirror) == []
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"
        assert list((mirror.store / "partial").iterdir()) == []
        assert simulator.counters().image_requests == 1


def test_of_another_image_it_is_said_meanwhile_that_it_is_passed_through(tmp_path: Path, simulator: Simulator) -> None:
    with ordinary_mirror(tmp_path / "mirror", simulator, {"upstream": {"metadata_ttl": "0s"}}) as mirror:
        mode(mirror.store / "images")
        assert fetch(mirror.image_url).ended == "complete"
        simulator.roll_over("second")
        outcome = fetch(mirror.image_url)
        assert (outcome.sha256, outcome.cache_status) == (simulator.image_sha256("second"), BYPASS)


def test_clients_of_every_worker_get_what_cannot_get_its_name(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", hang_after=2 * MIB))
    whole = simulator.image_sha256("first")
    with ordinary_mirror(tmp_path / "mirror", simulator, {"server": {"workers": 2}}) as mirror:
        mode(mirror.store / "images")

        with ExitStack() as clients:
            downloads: list[Download] = []
            while "fill.joined" not in mirror.actions():  # until each worker has one
                downloads.append(clients.enter_context(Download(mirror.image_url)))
                assert len(downloads) < 200
            simulator.wait_held()
            simulator.release()
            for download in downloads:
                assert download.read_all().body == simulator.read("first")
        for _ in range(10):
            outcome = fetch(mirror.image_url)
            assert (outcome.sha256, outcome.cache_status) == (whole, BYPASS)
        assert simulator.counters().image_requests == 1
        eventually(lambda: degraded(mirror))


@pytest.mark.parametrize(
    "left", [0, 1, 2], ids=["none for its directory", "none for its metadata", "none for its mark"]
)
def test_out_of_inodes_at_the_last_step_is_passed_by_and_the_image_stored_when_there_are_some(
    tmp_path: Path, simulator: Simulator, left: int
) -> None:
    simulator.fault(Fault("store", hang_after=2 * MIB))
    whole = simulator.image_sha256("first")
    with SmallDisk(tmp_path / "disk", 64 * MIB) as disk:
        disk.remount("nr_inodes=40")
        store = {"path": str(disk.path / "store"), "min_free": "0B"}
        with (
            ForkedMirror(tmp_path / "mirror", simulator.api_url, {"store": store}) as mirror,
            Download(mirror.image_url) as client,
        ):
            client.read(MIB)
            simulator.wait_held()
            used = use_up_inodes(disk.path)
            for _ in range(left):
                used.pop().unlink()
            simulator.release()
            assert client.read_all().body == simulator.read("first")
            for _ in range(2):
                outcome = fetch(mirror.image_url)
                assert (outcome.sha256, outcome.cache_status) == (whole, BYPASS)
            assert degraded(mirror)
            assert (
                "fill.went_on" not in mirror.settled.actions()
            )  # it was noted that it is right: it is not hashed again
            assert list((disk.path / "store" / "images").iterdir()) == []
            for path in used:
                path.unlink()
            assert fetch(mirror.image_url).sha256 == whole
            assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"
            assert degraded(mirror) == []
            assert simulator.counters().image_requests == 1


def use_up_inodes(directory: Path) -> list[Path]:
    made: list[Path] = []
    try:
        while True:
            path = directory / f"filler-{len(made)}"
            path.touch()
            made.append(path)
    except OSError:
        return made


def test_a_store_that_takes_nothing_and_has_images_is_ready_without_an_upstream(
    tmp_path: Path, simulator: Simulator
) -> None:
    sections: Sections = {"upstream": {"url": ""}, "auth": {"mode": "open"}}
    with ordinary_mirror(tmp_path / "mirror", simulator, sections) as mirror:
        lay_out(mirror.store)
        outcome = fetch(mirror.image_url)  # verified first, which takes a store that can be written
        assert outcome.ended == "complete"
        mode(mirror.store / "images")
        assert "Permission denied" in degraded(mirror)[0]
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"


def test_one_directory_of_another_user_keeps_nothing_else_from_being_seen_kept_and_removed(
    tmp_path: Path, simulator: Simulator
) -> None:
    with ordinary_mirror(tmp_path / "mirror", simulator) as mirror:
        theirs = mirror.store / "images" / lay_out(mirror.store)
        theirs.chmod(0)
        old = [mirror.store / place / f"{'c' * 64}.x.tmp" for place in ("quarantine", "partial")]
        for path in old:
            path.touch()
            os.utime(path, (1, 1))
        (mirror.store / "quarantine").chmod(0o555)
        for again in (False, True):
            if again:
                mirror.stop()
                mirror.start()
            assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
            with Download(f"{mirror.url}/mirror/v1/images/") as answer:
                listed = [image["hash"] for image in json.loads(answer.read_all().body)]
            assert listed == [simulator.image_sha256("first")]
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"
        assert [path.exists() for path in old] == [True, False]
        assert any(action.endswith(".stuck") for action in mirror.settled.actions())
        theirs.chmod(0o755)
        (mirror.store / "quarantine").chmod(0o755)


def test_a_store_that_cannot_be_written_is_verified_all_the_same(tmp_path: Path, simulator: Simulator) -> None:
    with SmallDisk(tmp_path / "disk", 64 * MIB) as disk:
        store = {"path": str(disk.path / "store"), "min_free": "0B"}
        with ForkedMirror(tmp_path / "mirror", simulator.api_url, {"store": store}) as mirror:
            assert fetch(mirror.image_url).ended == "complete"
            disk.remount("ro")
            assert run("verify", "--all", "-c", mirror.config_file).returncode == 0
            assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"


def test_pull_says_that_the_image_could_not_be_stored(tmp_path: Path, simulator: Simulator) -> None:
    with ordinary_mirror(tmp_path / "mirror", simulator) as mirror:
        mirror.stop()
        mode(mirror.store / "images")
        done = subprocess.run(
            [*mirror.through, *COMMAND, "pull", "-c", str(mirror.config_file)],
            capture_output=True,
            text=True,
            check=False,
            env=environment(DATAROBOT_API_TOKEN=TOKEN),
        )
        assert done.returncode == 1
        assert "cannot give a verified image its name, below images/: Permission denied" in " ".join(
            done.stderr.split()
        )


LOSSY = """
import errno, os, pathlib
real_sync, place = os.fsync, pathlib.Path(os.environ["DISK_TROUBLE"])
def fsync(fd):
    name = os.readlink(f"/proc/self/fd/{fd}")
    if place.exists() and "/partial/" in name and len(os.path.basename(name)) == 64:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return real_sync(fd)
os.fsync = fsync
"""
"""Put under the real process: a disk that loses what it was to make durable."""


def test_bytes_that_the_disk_lost_are_fetched_anew_though_the_page_cache_still_has_them(
    tmp_path: Path, simulator: Simulator
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LOSSY)
    trouble = tmp_path / "trouble"
    trouble.touch()
    environ = {"PYTHONPATH": str(tmp_path / "site"), "DISK_TROUBLE": str(trouble)}
    with MirrorProcess(tmp_path / "mirror", simulator.api_url, environ=environ) as mirror:
        assert fetch(mirror.image_url).ended == "reset"
        eventually(lambda: not list((mirror.store / "partial").iterdir()))
        trouble.unlink()
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        assert simulator.counters().image_requests == 2


def test_wrong_bytes_that_cannot_be_set_aside_are_not_taken_up_again(tmp_path: Path, simulator: Simulator) -> None:
    simulator.fault(Fault("store", corrupt_at=SIZE // 2, times=1))
    with ordinary_mirror(tmp_path / "mirror", simulator) as mirror:
        (mirror.store / "quarantine").chmod(0o555)
        assert fetch(mirror.image_url).ended == "reset"
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        assert simulator.counters().image_requests == 2
        assert "partial.stuck" in mirror.settled.actions()
