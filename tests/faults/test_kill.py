"""Guarantee 3: kill -9 or a power cut at any instant leaves the image or a resumable partial, never a wrong image."""

import http.client
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.downloads import AUTHORIZED, Download, fetch
from tests.support.forked import ForkedMirror, Step, Steps
from tests.support.processes import eventually

SIZE = 24 << 20
SMALL = 5 << 20
HALF = SMALL // 2
RATE = 40e6
"""Bytes a second of upstream's line: so that a kill meets a transfer in the middle."""

PIECE = 4 << 20
KILLS = 10
SEEDS = range(6)


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("large", size=SIZE), ImageSpec("small", size=SMALL)]) as simulator:
        yield simulator


@pytest.fixture
def large(simulator: Simulator) -> Simulator:
    simulator.roll_over("large")
    simulator.set_rate(RATE)
    return simulator


@pytest.fixture
def small(simulator: Simulator) -> Simulator:
    simulator.roll_over("small")
    return simulator


class Found:
    """What a mirror that died left of an image, having made sure that it is not wrong."""

    def __init__(self, store: Path, simulator: Simulator, name: str) -> None:
        image_hash = simulator.image_sha256(name)
        self.partial = store / "partial" / image_hash
        self.note = store / "partial" / f"{image_hash}.json"
        self.directory = store / "images" / image_hash
        self.stored = (self.directory / "image").exists()
        received = self.partial.read_bytes() if self.partial.exists() else b""
        self.length = len(received)
        assert received == simulator.read(name, 0, self.length)
        if self.stored:
            assert (self.directory / "image").read_bytes() == simulator.read(name)
            assert (self.directory / "metadata.json").read_bytes() == simulator.metadata_body(name)
        for note in (self.note, store / "current.json", store / "access.json"):
            assert not note.exists() or json.loads(note.read_bytes())


class PatientClient:
    """Downloads in as many requests as it takes: from where it was cut, as `wget -c` does."""

    def __init__(self, url: str, image_hash: str) -> None:
        self._url = url
        self._etag = f'"{image_hash}"'
        self.body = b""

    def go_on(self) -> None:
        """Fetch what is left, if anything, until the end or until the connection breaks."""
        if f'"{sha256(self.body).hexdigest()}"' == self._etag:
            return
        resumed = {"Range": f"bytes={len(self.body)}-", "If-Range": self._etag} if self.body else {}
        try:
            with Download(self._url, headers=AUTHORIZED | resumed) as download:
                assert download.status == (206 if self.body else 200)
                download.read_all()
                self.body += download.body
        except (ConnectionError, http.client.HTTPException):
            return


def instant(chance: random.Random, mirror: ForkedMirror, partial: Path) -> Callable[[], None]:
    """A moment to wait for: some time after the request, or when so many more bytes have come."""
    if chance.random() < 0.3:
        delay = chance.uniform(0, 0.08)
        return lambda: time.sleep(delay)
    length = partial.stat().st_size if partial.exists() else 0
    target = min(SIZE, length + chance.randrange(1, SIZE // (KILLS // 2)))

    def arrived() -> bool:
        return not partial.exists() or partial.stat().st_size >= target

    return lambda: eventually(arrived)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_again_and_again_it_resumes_each_time_and_a_patient_client_gets_the_right_image(
    tmp_path: Path, large: Simulator, seed: int
) -> None:
    chance = random.Random(seed)
    mirror = ForkedMirror(tmp_path, large.api_url)
    client = PatientClient(mirror.image_url, large.image_sha256("large"))
    partial = mirror.store / "partial" / large.image_sha256("large")
    resumed_at = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(KILLS):
            early = chance.random() < 0.1
            mirror.start(wait=not early)
            if early:  # while it starts
                time.sleep(chance.uniform(0, 0.1))
                mirror.kill()
                continue
            until = instant(chance, mirror, partial)
            going_on = pool.submit(client.go_on)
            until()
            mirror.kill()
            going_on.result()
            assert large.read("large", 0, len(client.body)) == client.body
            resumed_at.append(Found(mirror.store, large, "large").length)
    with mirror:
        client.go_on()
        assert sha256(client.body).hexdigest() == large.image_sha256("large")
        assert fetch(mirror.image_url).sha256 == large.image_sha256("large")
    assert Found(mirror.store, large, "large").stored
    assert not partial.exists()
    asked = {int((get.range or "bytes=0-").removeprefix("bytes=")[:-1]) for get in large.log("store")}
    assert asked <= {0, *resumed_at}
    assert large.bytes_sent() <= SIZE + KILLS * PIECE


def steps_of_a_fill(directory: Path, simulator: Simulator) -> list[Step]:
    """Every step that a mirror takes from its start until an image is stored, in order.

    The traffic's history is saved at the start, and at each ten minutes of the clock: what no other run would do is
    measured once more.
    """
    mirror = ForkedMirror(directory, simulator.api_url)
    mirror.steps = Steps(directory / "steps")
    with mirror:
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("small")
    steps = mirror.steps.read()
    served = max(number for number, step in enumerate(steps) if step.path.endswith("/served"))
    steps = steps[:served]  # what follows is the way out
    if any(step.path.startswith("history.json") and step.turn > 0 for step in steps):
        return steps_of_a_fill(directory / "again", simulator)
    return steps


def test_killed_at_any_step_toward_the_disk_it_loses_nothing_that_was_received(
    tmp_path: Path, small: Simulator
) -> None:
    steps = [
        step
        for step in steps_of_a_fill(tmp_path / "whole", small)
        if (step.call, step.turn > 0) != ("pwritev", True) and not step.path.endswith("/served")
    ]
    assert len(steps) > 20
    for number, step in enumerate(steps):
        small.reset_log()
        directory = tmp_path / str(number)
        mirror = ForkedMirror(directory, small.api_url)
        mirror.steps = Steps(directory / "steps", die_at=step)
        mirror.start()
        client = PatientClient(mirror.image_url, small.image_sha256("small"))
        client.go_on()
        mirror.wait_dead()
        assert len(client.body) < SMALL, step  # nobody has it whole before it is durable
        left = Found(mirror.store, small, "small")
        asked = len(small.log("store"))
        mirror.steps = None
        with mirror:
            client.go_on()
            assert client.body == small.read("small"), step
        assert Found(mirror.store, small, "small").stored, step
        assert not left.partial.exists(), step
        needed = [] if left.stored or left.length == SMALL else [f"bytes={left.length}-" if left.length else None]
        assert [get.range for get in small.log("store")[asked:]] == needed, step


def test_what_a_crash_left_half_written_is_gone_when_it_is_old(tmp_path: Path, small: Simulator) -> None:
    mirror = ForkedMirror(tmp_path, small.api_url)
    with mirror:
        assert fetch(mirror.image_url).sha256 == small.image_sha256("small")
    image = mirror.store / "images" / small.image_sha256("small")
    orphans = [
        mirror.store / "current.json.0123456789abcdef.tmp",
        mirror.store / "access.json.0123456789abcdef.tmp",
        mirror.store / "partial" / f"{'a' * 64}.json.0123456789abcdef.tmp",
        mirror.store / "partial" / f"{'b' * 64}.json",
        mirror.store / "partial" / ("c" * 64),
        image / "metadata.json.0123456789abcdef.tmp",
    ]
    long_ago = time.time() - 8 * 86_400
    for path in orphans:
        path.write_bytes(b"{")
        os.utime(path, (long_ago, long_ago))
    with mirror:
        assert fetch(mirror.image_url).cache_status == "pps-mirror; hit"
    assert not [path for path in orphans if path.exists()]


def test_a_power_cut_at_any_moment_finds_a_durable_image_behind_its_name(tmp_path: Path, small: Simulator) -> None:
    steps = steps_of_a_fill(tmp_path / "whole", small)
    image_hash = small.image_sha256("small")
    partial, image = f"partial/{image_hash}", f"images/{image_hash}"

    def at(call: str, path: str, target: str = "", *, last: bool = False) -> int:
        found = [n for n, step in enumerate(steps) if (step.call, step.path, step.target) == (call, path, target)]
        assert found, f"no {call} of {path}: {[str(step) for step in steps]}"
        return found[-1 if last else 0]

    metadata, note = f"{image}/metadata.json", f"{partial}.json"
    named = at("rename", partial, f"{image}/image")
    # Everything that the name leads to is on the disk before there is the name ...
    assert at("mkdir", "images") < at("fsync", ".") < at("create", partial)
    assert at("pwritev", partial, last=True) < at("fsync", partial, last=True) < named
    assert at("mkdir", image) < at("fsync", "images", last=True) < named
    assert at("fsync", f"{metadata}.*.tmp") < at("rename", f"{metadata}.*.tmp", metadata) < at("fsync", image) < named
    # ... the name itself before anybody is told, and what led to the partial is taken away only then.
    assert named < at("fsync", image, last=True) < at("unlink", note) < at("fsync", "partial", last=True)
    # The partial can be resumed by its validator after a power cut, too.
    assert at("create", partial) < at("fsync", f"{note}.*.tmp") < at("rename", f"{note}.*.tmp", note)
    assert at("rename", f"{note}.*.tmp", note) < at("fsync", "partial") < at("fsync", partial, last=True)


def flip(partial: Path) -> None:
    data = bytearray(partial.read_bytes())
    data[len(data) // 2] ^= 1
    partial.write_bytes(data)


def lengthen(partial: Path, count: int) -> None:
    with partial.open("ab") as file:
        file.write(b"\0" * count)


ALTERED: dict[str, Callable[[Path], object]] = {
    "a bit flipped": flip,
    "zeros at its end": lambda partial: lengthen(partial, 4096),
    "zeros up to the image's size": lambda partial: lengthen(partial, SMALL - HALF),
    "garbage": lambda partial: partial.write_bytes(random.Random(0).randbytes(HALF)),
}
HARMLESS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda partial: os.truncate(partial, HALF - 100_000),
    "emptied": lambda partial: os.truncate(partial, 0),
    "removed": lambda partial: partial.unlink(),
    "longer than the image": lambda partial: lengthen(partial, SMALL),
    "note removed": lambda partial: partial.with_name(f"{partial.name}.json").unlink(),
    "note emptied": lambda partial: partial.with_name(f"{partial.name}.json").write_bytes(b""),
    "note is garbage": lambda partial: partial.with_name(f"{partial.name}.json").write_bytes(b"\xff{]"),
    "note is of another kind": lambda partial: partial.with_name(f"{partial.name}.json").write_bytes(b"[1]"),
    "note has a header in it": lambda partial: partial.with_name(f"{partial.name}.json").write_text(
        json.dumps({"validator": '"x"\r\nX-Injected: 1'})
    ),
}


@pytest.fixture
def killed(tmp_path: Path, small: Simulator) -> tuple[ForkedMirror, Path]:
    """A mirror that was killed in the middle of the image, and the partial that it left."""
    small.fault(Fault("store", hang_after=HALF))
    mirror = ForkedMirror(tmp_path, small.api_url).start()
    partial = mirror.store / "partial" / small.image_sha256("small")
    with Download(mirror.image_url) as download:
        download.read(HALF)
        eventually(partial.with_name(f"{partial.name}.json").exists)
        mirror.kill()
    small.clear_faults()
    assert partial.stat().st_size == HALF
    return mirror, partial


@pytest.mark.parametrize("alter", ALTERED.values(), ids=list(ALTERED))
def test_a_partial_altered_while_the_mirror_was_down_is_never_given_whole_and_the_next_fetch_is_right(
    killed: tuple[ForkedMirror, Path], small: Simulator, alter: Callable[[Path], object]
) -> None:
    mirror, partial = killed
    alter(partial)
    with mirror:
        first = fetch(mirror.image_url)
        assert first.ended == "reset" or first.status == 502
        assert first.length < SMALL
        assert not list((mirror.store / "images").iterdir())
        again = fetch(mirror.image_url)
        assert (again.ended, again.sha256) == ("complete", small.image_sha256("small"))
    assert Found(mirror.store, small, "small").stored
    assert not list(partial.parent.iterdir())


@pytest.mark.parametrize("alter", HARMLESS.values(), ids=list(HARMLESS))
def test_a_partial_that_is_shorter_or_without_its_note_costs_nothing_but_what_is_missing(
    killed: tuple[ForkedMirror, Path], small: Simulator, alter: Callable[[Path], object]
) -> None:
    mirror, partial = killed
    alter(partial)
    length = partial.stat().st_size if partial.exists() else 0
    with mirror:
        outcome = fetch(mirror.image_url)
        assert (outcome.status, outcome.ended, outcome.sha256) == (200, "complete", small.image_sha256("small"))
    assert [get.range for get in small.log("store")] == [
        None,
        f"bytes={length}-" if 0 < length < SMALL else None,
    ]
    assert Found(mirror.store, small, "small").stored
    assert not list(partial.parent.iterdir())
