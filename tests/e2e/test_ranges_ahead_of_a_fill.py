"""A range of an image that is only in the bucket, while a fill brings it to the disk: from the bucket, at once.

By the same rules of trust as ever: its last bytes wait until all of that object has been read and was right.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mirror.simulator.client import ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED, HELD, Download, fetch
from tests.support.fixtures import Canary
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually
from tests.support.s3.fixtures import TestBucket
from tests.support.s3.front import Front, Trouble
from tests.support.s3.with_image import HIT, OBJECT, Make, get
from tests.support.shell import Shell

MIB = 1 << 20
SIZE = 12 * MIB
LONG = 4 * MIB
THIN = 256 << 10
"""Bytes per second: a fill would take the better part of a minute."""


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture
def shell(tmp_path: Path, canary: Canary) -> Shell:
    directory = tmp_path / "user"
    directory.mkdir()
    return Shell(directory, canary)


def filled(mirror: ForkedMirror, simulator: Simulator) -> int:
    """How far the fill is."""
    partial = mirror.store / "partial" / simulator.image_sha256("first")
    return partial.stat().st_size if partial.exists() else 0


def stored(mirror: ForkedMirror, simulator: Simulator) -> bool:
    """Whether it has ended well."""
    return (mirror.store / "images" / simulator.image_sha256("first") / "image").exists()


def part(mirror: ForkedMirror, wanted: str) -> Download:
    """A download of a range, to be read."""
    return Download(mirror.image_url, headers=AUTHORIZED | {"Range": wanted})


def test_a_range_does_not_wait_for_a_fill_that_has_not_come_there(
    mirror_on: Make, shell: Shell, simulator: Simulator, front: Front
) -> None:
    front.rate = THIN
    with mirror_on(local_copy=True) as mirror:
        for start, stop in ((8 * MIB, 8 * MIB + 100_000), (SIZE - HELD - 10, SIZE - HELD)):
            assert shell.curl("-r", f"{start}-{stop - 1}", "-o", "it", mirror.image_url).status == 0
            assert shell.read("it") == simulator.read("first")[start:stop]
            assert filled(mirror, simulator) < start
            assert not stored(mirror, simulator)
        answer = get(mirror, Range=f"bytes={9 * MIB}-{9 * MIB + 9}")
        assert (answer.status, answer.header("Cache-Status")) == (206, HIT)
        front.rate = None
        eventually(lambda: stored(mirror, simulator), what="the fill's end")
    assert simulator.counters().image_requests == 0
    whole = [asked for asked in front.asked("GET", OBJECT) if asked.range and asked.range.startswith("bytes=0-")]
    assert len(whole) == 1


def test_the_last_bytes_of_a_range_wait_until_the_fill_has_found_the_object_right(
    mirror_on: Make, simulator: Simulator, front: Front
) -> None:
    front.rate = THIN
    with mirror_on(local_copy=True) as mirror, ThreadPoolExecutor(1) as pool:
        with part(mirror, f"bytes={SIZE - HELD - 1000}-") as download:
            assert download.read(1000) == simulator.read("first")[-HELD - 1000 : -HELD]
            rest = pool.submit(download.read, 1)
            with part(mirror, f"bytes={10 * MIB}-{10 * MIB + 999}") as another:  # something that takes its time as well
                another.read_all()
                assert another.ended == "complete"
            assert not rest.done()
            assert not stored(mirror, simulator)
            front.rate = None
            rest.result()
            assert stored(mirror, simulator)
            download.read_all()
            assert download.ended == "complete"
            assert download.body == simulator.read("first")[-HELD - 1000 :]
    whole = [asked for asked in front.asked("GET", OBJECT) if asked.sent > SIZE // 2]
    assert len(whole) == 1  # the fill's: nothing is read once more to be verified


def test_a_range_of_an_object_with_other_bytes_never_gets_its_last_ones(
    mirror_on: Make, simulator: Simulator, bucket: TestBucket, front: Front
) -> None:
    image_hash = simulator.image_sha256("first")
    with mirror_on(local_copy=True) as mirror:
        bucket.write(f"images/{image_hash}", b"x" * 100 + simulator.read("first")[100:])
        front.rate = THIN
        with part(mirror, f"bytes={SIZE - HELD - 1000}-") as download:
            assert len(download.read(1000)) == 1000
            front.rate = None
            download.read_all()
            assert download.ended == "reset"
            assert len(download.body) <= 1000
        eventually(lambda: fetch(mirror.image_url).ended == "complete", what="an end to resets")
        outcome = fetch(mirror.image_url)
        assert outcome.sha256 == image_hash
        again = get(mirror, Range=f"bytes={SIZE - HELD - 1000}-")
        assert (again.ended, again.body) == ("complete", simulator.read("first")[-HELD - 1000 :])


def replaced(bucket: TestBucket, name: str) -> None:
    """Somebody lays other bytes there."""
    bucket.write(name, b"y" * SIZE)


DEEDS: dict[str, Callable[[TestBucket, str], None]] = {"replaced": replaced, "deleted": TestBucket.delete}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_a_range_ends_in_a_reset_when_the_object_is_another_one_in_the_middle(
    mirror_on: Make, simulator: Simulator, bucket: TestBucket, front: Front, deed: Callable[[TestBucket, str], None]
) -> None:
    start = 4 * MIB
    with mirror_on(local_copy=True) as mirror:
        front.rate = THIN
        # Both are cut, and cannot go on before it is done.
        front.trouble(Trouble("GET", OBJECT, times=2, cut_after=MIB), Trouble("GET", OBJECT, close=True))
        with part(mirror, f"bytes={start}-{SIZE - HELD - 1}") as download:
            download.read(100_000)
            deed(bucket, f"images/{simulator.image_sha256('first')}")
            front.clear()
            download.read_all()
            assert download.ended == "reset"
            assert simulator.read("first")[start:].startswith(download.body)
        eventually(lambda: fetch(mirror.image_url).ended == "complete", what="an end to resets")
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")


def test_aria2c_with_four_connections_gets_it_right(
    mirror_on: Make, shell: Shell, simulator: Simulator, front: Front
) -> None:
    front.rate = MIB
    with mirror_on(local_copy=True) as mirror:
        ended = shell.aria2c("--quiet", mirror.image_url)
        assert ended.status == 0, ended
        (name,) = [path.name for path in shell.directory.iterdir()]
        assert shell.read(name) == simulator.read("first")
        ahead = [
            asked for asked in front.asked("GET", OBJECT) if asked.range and not asked.range.startswith("bytes=0-")
        ]
        assert ahead
    assert simulator.counters().image_requests == 0


def test_a_range_waits_for_the_fill_as_before_when_the_bucket_does_not_give_it(
    mirror_on: Make, simulator: Simulator, front: Front
) -> None:
    with mirror_on(local_copy=True) as mirror:
        front.rate = 8 * MIB
        with Download(mirror.image_url, headers=AUTHORIZED) as whole:
            whole.read(1)
            front.trouble(Trouble("HEAD", OBJECT, status=403, code="AccessDenied"))
            answer = get(mirror, Range=f"bytes={SIZE - 1000}-")
            assert (answer.status, answer.ended) == (206, "complete")
            assert answer.body == simulator.read("first")[-1000:]
            whole.read_all()
            assert whole.ended == "complete"


def test_fifty_ranges_ahead_of_a_fill_take_little_memory(mirror_on: Make, simulator: Simulator, front: Front) -> None:
    with mirror_on(local_copy=True) as mirror:
        front.rate = MIB
        fetching = part(mirror, "bytes=0-0")
        with closing(fetching), ThreadPoolExecutor(50) as pool:
            starts = [6 * MIB + 20_000 * number for number in range(50)]
            for start, answer in zip(
                starts,
                pool.map(lambda start: get(mirror, Range=f"bytes={start}-{start + LONG - 1}"), starts),
                strict=True,
            ):
                assert answer.ended == "complete"
                assert answer.body == simulator.read("first")[start : start + LONG]
        assert mirror.process is not None
        status = Path(f"/proc/{mirror.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
        assert peak < 150 * MIB  # of ranges that are 200 MiB together
