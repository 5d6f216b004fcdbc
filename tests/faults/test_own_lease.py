"""A process that died holding a lease is known to be dead by those of its own store, and by nobody else."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from mirror.store.s3.timings import Timings
from tests.support.downloads import Download, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.replicas import KINDS

pytestmark = pytest.mark.leases

MIB = 1 << 20
SIZE = 24 * MIB
TIMINGS = Timings(lease=1e6, renew=1.0, flush=1.0)
"""Nobody lives to see such a lease run out."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture
def simulator(upstream: Simulator) -> Iterator[Simulator]:
    upstream.reset_log()
    upstream.fault(Fault("store", hang_after=SIZE // 2, times=1))
    yield upstream
    upstream.clear_faults()


def make(
    directory: Path, bucket: TestBucket, simulator: Simulator, *, local_copy: bool, **sections: dict[str, object]
) -> ForkedMirror:
    """A mirror over the bucket, not started."""
    mirror = ForkedMirror(
        directory,
        simulator.api_url,
        {"store.s3": {**bucket.section, "local_copy": local_copy}, **sections},
        bucket.server.environ,
    )
    mirror.timings = TIMINGS
    mirror.constants = {"mirror.store.s3.parts:PART": 5 * MIB}
    return mirror


def lease(bucket: TestBucket, simulator: Simulator) -> dict[str, object]:
    """What the lease says; nothing when there is none."""
    note = bucket.read(f"leases/{simulator.image_sha256('first')}")
    return dict(json.loads(note)) if note else {}


def wait_for_a_part(bucket: TestBucket, simulator: Simulator) -> None:
    """Wait until the one that fetches has brought a part into the bucket; half of the image comes, then no more."""
    eventually(lambda: int(str(lease(bucket, simulator).get("position", 0))) >= 5 * MIB, 60, "a part in the bucket")


def assert_settled(bucket: TestBucket, simulator: Simulator) -> None:
    """The image is in the bucket, and nothing of its fill."""
    image_hash = simulator.image_sha256("first")
    expected = {f"images/{image_hash}", f"images/{image_hash}.json", "current.json"}
    eventually(lambda: set(bucket.names()) == expected, 60, "the end of the upload")
    image = bucket.read(f"images/{image_hash}")
    assert image == simulator.read("first")


@KINDS
def test_a_mirror_that_was_killed_and_comes_back_does_not_wait_for_its_own_lease(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with make(tmp_path / "mirror", bucket, simulator, local_copy=local_copy) as mirror:
        with Download(mirror.image_url) as download:
            download.read(1)
            wait_for_a_part(bucket, simulator)
            mirror.kill()
        mirror.start()
        outcome = fetch(mirror.image_url)
        assert (outcome.status, outcome.ended) == (200, "complete")
        assert outcome.sha256 == simulator.image_sha256("first")
        _, resumed = simulator.log("store")
        assert resumed.range is not None
        assert int(resumed.range.removeprefix("bytes=").removesuffix("-")) >= 5 * MIB
        assert_settled(bucket, simulator)
    assert not (mirror.store / "processes").exists() or len(list((mirror.store / "processes").iterdir())) == 1


@KINDS
def test_a_worker_that_dies_is_succeeded_by_another_at_once(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    mirror = make(tmp_path / "mirror", bucket, simulator, local_copy=local_copy, server={"workers": 2})
    with mirror, Download(mirror.image_url) as download:
        download.read(1)
        wait_for_a_part(bucket, simulator)
        os.kill(holder_of(mirror.store / "processes" / str(lease(bucket, simulator)["holder"])), signal.SIGKILL)
        eventually(lambda: is_served(mirror, simulator), 60, "a download from the worker that is left, or the new one")
        assert len(simulator.log("store")) == 2
        assert_settled(bucket, simulator)


def is_served(mirror: ForkedMirror, simulator: Simulator) -> bool:
    """Whether a client gets the image; one whose connection waits at the dead worker is reset."""
    try:
        return fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    except ConnectionResetError:
        return False


def holder_of(path: Path) -> int:
    """The process that has locked a file."""
    inode = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        if found := re.search(rf"FLOCK +ADVISORY +WRITE +(\d+) +[0-9a-f]+:[0-9a-f]+:{inode} ", line):
            return int(found[1])
    raise AssertionError(f"nobody has locked {path}")


def test_a_process_of_the_same_store_that_lives_keeps_its_lease(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator
) -> None:
    one = make(tmp_path / "one", bucket, simulator, local_copy=False)
    two = make(tmp_path / "two", bucket, simulator, local_copy=False, store={"path": str(one.store)})
    with one, two, Download(one.image_url) as first:
        first.read(1)
        wait_for_a_part(bucket, simulator)
        holder = lease(bucket, simulator)["holder"]
        with Download(two.image_url) as second:
            second.read(4 * MIB)
            assert lease(bucket, simulator)["holder"] == holder
            simulator.wait_held()
            simulator.release()
            first.read_all()
            second.read_all()
            assert (first.ended, second.ended) == ("complete", "complete")
        assert len(simulator.log("store")) == 1
        assert_settled(bucket, simulator)


@KINDS
def test_a_copy_of_the_store_takes_nothing_away_from_a_mirror_that_lives(
    tmp_path: Path, bucket: TestBucket, simulator: Simulator, local_copy: bool
) -> None:
    with make(tmp_path / "original", bucket, simulator, local_copy=local_copy) as original:
        copy = make(tmp_path / "copy", bucket, simulator, local_copy=local_copy)
        with Download(original.image_url) as first:
            first.read(1)
            wait_for_a_part(bucket, simulator)
            shutil.copytree(original.store, copy.store)
            with copy, Download(copy.image_url) as second:
                second.read(4 * MIB)
                simulator.release()
                first.read_all()
                second.read_all()
                assert (first.ended, second.ended) == ("complete", "complete")
                assert first.body == second.body == simulator.read("first")
                assert "lease.lost" not in original.settled.actions()
                assert len(simulator.log("store")) == 1
                assert_settled(bucket, simulator)
