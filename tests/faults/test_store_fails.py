"""Guarantee 8: a store that is full, read-only, failing or gone turns the mirror into a verifying pass-through."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, Simulator
from tests.support.admin import degraded
from tests.support.downloads import AUTHORIZED, BYPASS, Download, at_once, fetch
from tests.support.fixtures import Sections, simulator_of, two_images
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually
from tests.support.rot import remove
from tests.support.small_disk import SmallDisk

MIB = 1 << 20
SIZE = 24 * MIB
"""Three times what the mirror keeps in memory of an image that it passes through."""


shared_simulator = simulator_of(two_images(SIZE))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", 16 * MIB) as disk:
        yield disk


def mirror_on(disk: SmallDisk, simulator: Simulator, sections: Sections | None = None) -> MirrorProcess:
    store = {"path": str(disk.path / "store"), "min_free": "0B"}
    return ForkedMirror(
        disk.path.parent / "mirror",
        simulator.api_url,
        {"store": store, "upstream": {"metadata_ttl": "0s"}} | dict(sections or {}),
    )


def test_a_disk_too_small_for_the_image_passes_it_through_once_for_all_and_recovers_without_a_restart(
    disk: SmallDisk, simulator: Simulator
) -> None:
    with mirror_on(disk, simulator) as mirror:
        outcomes = at_once(20, lambda: fetch(mirror.image_url))
        assert {outcome.sha256 for outcome in outcomes} == {simulator.image_sha256("first")}
        assert {outcome.cache_status for outcome in outcomes} == {BYPASS}
        assert simulator.counters().store_gets == 1
        assert not list((disk.path / "store" / "images").iterdir())
        assert mirror.settled.actions().count("store.failing") == 1
        assert "store.min_free" in degraded(mirror)[0]
        disk.remount("size=64m")
        assert fetch(mirror.image_url).cache_status == "pps-mirror; fwd=miss; stored"
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"
        assert mirror.settled.actions().count("store.recovered") == 1
        assert degraded(mirror) == []


def test_a_disk_that_fills_up_during_a_fill_lets_those_near_its_end_finish_and_resets_those_far_behind(
    disk: SmallDisk, simulator: Simulator
) -> None:
    disk.remount("size=40m")
    simulator.fault(Fault("store", hang_after=10 * MIB))
    with mirror_on(disk, simulator) as mirror, ExitStack() as clients:
        near = clients.enter_context(Download(mirror.image_url))
        far = clients.enter_context(Download(mirror.image_url))
        near.read(10 * MIB - 65536)
        far.read(1)
        simulator.wait_held()
        disk.fill_up()
        simulator.release()
        assert near.read_all().ended == "complete"
        assert near.body == simulator.read("first")
        # Far behind, one is sent what the file has; what came after it has gone from memory. The reset takes back what
        # the kernel has not delivered by then, which is a send buffer at most.
        assert far.read_all().ended == "reset"
        buffered = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
        assert 10 * MIB - buffered <= len(far.body) < SIZE
        assert simulator.read("first").startswith(far.body)
        assert far.body == simulator.read("first", 0, len(far.body))
        assert "too slow for an image that is passed through" in mirror.settled.log()
        first, resumed = simulator.log("store")  # it went on from where it was
        assert first.range is None
        assert int((resumed.range or "").removeprefix("bytes=").rstrip("-")) >= 10 * MIB - 65536
        assert fetch(mirror.image_url).cache_status == BYPASS
        assert degraded(mirror)
        (disk.path / "filler").unlink()
        again = fetch(mirror.image_url)
        assert (again.cache_status, again.sha256) == ("pps-mirror; fwd=miss; stored", simulator.image_sha256("first"))
        assert degraded(mirror) == []


def test_wrong_bytes_that_are_passed_through_are_never_given_whole(disk: SmallDisk, simulator: Simulator) -> None:
    simulator.fault(Fault("store", corrupt_at=SIZE // 2, times=1))
    with mirror_on(disk, simulator) as mirror:
        outcomes = at_once(5, lambda: fetch(mirror.image_url))
        assert {outcome.ended for outcome in outcomes} == {"reset"}
        assert all(outcome.length <= SIZE - 65536 for outcome in outcomes)
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")


def test_a_cut_line_is_resumed_while_an_image_is_passed_through(disk: SmallDisk, simulator: Simulator) -> None:
    simulator.fault(Fault("store", cut_after=9 * MIB, times=1))
    with mirror_on(disk, simulator) as mirror:
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        first, resumed = simulator.log("store")
        assert (first.range, (resumed.range or "")[:6]) == (None, "bytes=")


def test_a_client_too_slow_for_what_is_passed_through_is_reset_and_slows_the_others_for_seconds_only(
    disk: SmallDisk, simulator: Simulator
) -> None:
    with mirror_on(disk, simulator) as mirror, Download(mirror.image_url) as slow, Download(mirror.image_url) as quick:
        slow.read(1)
        assert quick.read_all().body == simulator.read("first")
        assert slow.read_all().ended == "reset"
        assert "too slow for an image that is passed through" in mirror.settled.log()
        assert simulator.counters().store_gets == 1


def test_who_comes_when_the_window_has_moved_on_begins_another_transfer(disk: SmallDisk, simulator: Simulator) -> None:
    with mirror_on(disk, simulator) as mirror, Download(mirror.image_url) as first:
        assert len(first.read(20 * MIB)) == 20 * MIB
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        assert simulator.counters().store_gets == 2
        assert first.read_all().body == simulator.read("first")


def test_ranges_are_passed_through_as_well(disk: SmallDisk, simulator: Simulator) -> None:
    with mirror_on(disk, simulator) as mirror:
        for start, stop in ((0, 100), (5 * MIB, 6 * MIB), (SIZE - 100, SIZE)):
            with Download(mirror.image_url, headers=AUTHORIZED | {"Range": f"bytes={start}-{stop - 1}"}) as part:
                assert part.status == 206
                assert part.read_all().body == simulator.read("first", start, stop)


def test_a_read_only_disk_serves_what_it_has_and_passes_the_rest_through(disk: SmallDisk, simulator: Simulator) -> None:
    disk.remount("size=64m")
    with mirror_on(disk, simulator) as mirror:
        assert fetch(mirror.image_url).cache_status == "pps-mirror; fwd=miss; stored"
        disk.remount("ro")
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"
        simulator.roll_over("second")
        outcome = fetch(mirror.image_url)
        assert (outcome.cache_status, outcome.sha256) == (BYPASS, simulator.image_sha256("second"))
        assert "read-only" in degraded(mirror)[0].lower()
        mirror.stop()
        mirror.start()  # a restart does not need a disk that can be written
        assert fetch(mirror.image_url).cache_status == BYPASS
        disk.remount("rw")
        assert fetch(mirror.image_url).cache_status == "pps-mirror; fwd=miss; stored"
        assert degraded(mirror) == []


def test_a_store_that_is_gone_is_made_anew(disk: SmallDisk, simulator: Simulator) -> None:
    disk.remount("size=64m")
    with mirror_on(disk, simulator) as mirror:
        assert fetch(mirror.image_url).cache_status == "pps-mirror; fwd=miss; stored"
        remove(disk.path / "store")
        assert fetch(mirror.image_url).cache_status == "pps-mirror; fwd=miss; stored"
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"


FAILING = """
import errno, os, pathlib, time
real_write = os.pwritev
place = pathlib.Path(os.environ["DISK_TROUBLE"])
def pwritev(fd, pieces, offset):
    if place.exists():
        trouble = place.read_text()
        if trouble == "EIO":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        time.sleep(float(trouble))
    return real_write(fd, pieces, offset)
os.pwritev = pwritev
"""
"""Put under the real process: a disk that fails, or that takes its time, when a file says so."""


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAILING)
    return tmp_path / "trouble"


def mirror_in_trouble(tmp_path: Path, simulator: Simulator, trouble: Path) -> MirrorProcess:
    environ = {"PYTHONPATH": str(tmp_path / "site"), "DISK_TROUBLE": str(trouble)}
    return MirrorProcess(tmp_path / "mirror", simulator.api_url, environ=environ)


def test_a_disk_with_input_output_errors_is_passed_by(tmp_path: Path, simulator: Simulator, trouble: Path) -> None:
    simulator.fault(Fault("store", hang_after=10 * MIB))
    with mirror_in_trouble(tmp_path, simulator, trouble) as mirror, Download(mirror.image_url) as waiting:
        waiting.read(10 * MIB)
        simulator.wait_held()
        trouble.write_text("EIO")
        simulator.release()
        assert waiting.read_all().body == simulator.read("first")
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        assert not list((mirror.store / "images").iterdir())
        trouble.unlink()
        outcome = fetch(mirror.image_url)
        assert (outcome.cache_status, outcome.sha256) == (
            "pps-mirror; fwd=miss; stored",
            simulator.image_sha256("first"),
        )


@pytest.mark.alone
def test_a_slow_disk_slows_the_fill_and_nothing_else(tmp_path: Path, simulator: Simulator, trouble: Path) -> None:
    with mirror_in_trouble(tmp_path, simulator, trouble) as mirror:
        trouble.write_text("0.3")
        with Download(mirror.image_url) as download:
            for _ in range(5):
                began = time.monotonic()
                assert fetch(mirror.metadata_url).status == 200
                assert time.monotonic() - began < 1.0
            eventually(lambda: (mirror.store / "partial" / simulator.image_sha256("first")).stat().st_size)
            trouble.write_text("0")
            assert download.read_all().body == simulator.read("first")
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"
