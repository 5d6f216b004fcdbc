"""Stored bytes that change, shrink or vanish: they are noticed, never served, and fetched anew. Real processes."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import ImageSpec, Simulator
from tests.support.downloads import Outcome, fetch
from tests.support.fixtures import FreshMirror
from tests.support.processes import MirrorProcess, eventually
from tests.support.rot import assert_right, flip, image_file, quarantined, remove

SIZE = 6 << 20


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=SIZE), ImageSpec("second", size=SIZE)]) as simulator:
        yield simulator


@pytest.fixture
def mirror(fresh_mirror: FreshMirror, simulator: Simulator) -> MirrorProcess:
    """A mirror that has the first image."""
    mirror = fresh_mirror({"upstream": {"metadata_ttl": "0s"}})
    assert_right(fetch(mirror.image_url), simulator)
    simulator.reset_log()
    return mirror


def lay_out(store: Path, simulator: Simulator, name: str, content: bytes | None = None) -> None:
    """Put an image into the store as a person would."""
    directory = store / "images" / simulator.image_sha256(name)
    directory.mkdir(parents=True)
    (directory / "metadata.json").write_bytes(simulator.metadata_body(name))
    (directory / "image").write_bytes(simulator.read(name) if content is None else content)


def assert_never_whole(outcome: Outcome) -> None:
    assert outcome.status == 502 or (outcome.status, outcome.ended) == (200, "reset")


@pytest.mark.parametrize("restarted", [False, True])
def test_a_changed_file_is_verified_before_it_is_trusted_set_aside_and_fetched_anew(
    mirror: MirrorProcess, simulator: Simulator, restarted: bool
) -> None:
    path = image_file(mirror, simulator)
    flip(path, SIZE // 2, hidden=False)
    if restarted:
        mirror.stop()
        mirror.start()
    outcome = fetch(mirror.image_url)
    (aside,) = quarantined(mirror)
    assert aside.name.startswith(simulator.image_sha256("first"))
    if simulator.counters().image_requests:  # the scrub, which a start begins with what nobody verified, was quicker
        assert restarted
        assert_right(outcome, simulator)
    else:
        assert_never_whole(outcome)
    assert_right(fetch(mirror.image_url), simulator)
    assert simulator.counters().image_requests == 1
    assert hashlib.sha256(path.read_bytes()).hexdigest() == simulator.image_sha256("first")


def test_a_file_replaced_by_cp_is_verified_and_served_without_asking_upstream(
    mirror: MirrorProcess, simulator: Simulator, tmp_path: Path
) -> None:
    (tmp_path / "copy").write_bytes(simulator.read("first"))
    subprocess.run(["cp", tmp_path / "copy", image_file(mirror, simulator)], check=True)
    assert_right(fetch(mirror.image_url), simulator)
    outcome = fetch(mirror.image_url)
    assert_right(outcome, simulator)
    assert outcome.cache_status == "pps-mirror; hit"
    subprocess.run(["cp", "--remove-destination", tmp_path / "copy", image_file(mirror, simulator)], check=True)
    assert_right(fetch(mirror.image_url), simulator)
    assert simulator.counters().image_requests == 0
    assert mirror.settled.actions().count("image.altered") == 2


def test_a_truncated_file_is_continued_from_its_end(mirror: MirrorProcess, simulator: Simulator) -> None:
    os.truncate(image_file(mirror, simulator), SIZE // 4)
    assert_right(fetch(mirror.image_url), simulator)
    assert [request.range for request in simulator.log("store")] == [f"bytes={SIZE // 4}-"]
    assert quarantined(mirror) == []


@pytest.mark.parametrize("gone", ["image", "directory"])
def test_what_was_deleted_by_hand_is_fetched_anew(mirror: MirrorProcess, simulator: Simulator, gone: str) -> None:
    path = image_file(mirror, simulator)
    if gone == "image":
        path.unlink()
    else:
        remove(path.parent)
    assert_right(fetch(mirror.image_url), simulator)
    assert simulator.counters().image_requests == 1
    assert path.exists()


def test_a_directory_laid_out_by_hand_is_verified_and_served_also_by_its_hash(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    lay_out(mirror.store, simulator, "second")
    by_hash = f"{mirror.url}/mirror/v1/images/{simulator.image_sha256('second')}/"
    assert_right(fetch(by_hash), simulator, "second")
    outcome = fetch(by_hash)
    assert_right(outcome, simulator, "second")
    assert outcome.cache_status == "pps-mirror; hit"
    assert simulator.counters().image_requests == 0


def test_a_directory_laid_out_by_hand_with_wrong_bytes_is_never_served_whole(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.roll_over("second")
    lay_out(mirror.store, simulator, "second", simulator.read("second")[:-1] + b"?")
    assert_never_whole(fetch(mirror.image_url))
    assert_right(fetch(mirror.image_url), simulator, "second")


# The scrub


def scrubbed(mirror: MirrorProcess, simulator: Simulator, name: str = "first") -> datetime:
    marker: dict[str, Any] = json.loads((image_file(mirror, simulator, name).parent / "verified").read_text())
    return datetime.fromisoformat(marker["verifiedAt"])


def age(mirror: MirrorProcess, simulator: Simulator, name: str, days: float) -> datetime:
    """Let it have been verified that long ago."""
    path = image_file(mirror, simulator, name).parent / "verified"
    then = datetime.now(UTC) - timedelta(days=days)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verifiedAt": then.isoformat()}))
    return then


def test_the_scrub_finds_a_bit_that_rotted_without_a_trace_and_the_next_request_fetches_anew(
    fresh_mirror: FreshMirror, simulator: Simulator
) -> None:
    mirror = fresh_mirror({"store": {"scrub_interval": "100ms"}})
    assert_right(fetch(mirror.image_url), simulator)
    flip(image_file(mirror, simulator), SIZE - 1, hidden=True)
    eventually(lambda: quarantined(mirror), what="the scrub's find")
    eventually(lambda: "scrub.bad" in mirror.actions(), what="its line in the log")
    assert_right(fetch(mirror.image_url), simulator)
    assert simulator.counters().image_requests == 2
    assert mirror.settled.actions().count("scrub.bad") == 1


def test_the_scrub_takes_what_has_waited_longest_and_goes_on_there_after_a_restart(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    simulator.roll_over("second")
    assert_right(fetch(mirror.image_url), simulator, "second")
    mirror.stop()
    old, young = age(mirror, simulator, "first", 8), age(mirror, simulator, "second", 1)
    mirror.start()
    eventually(lambda: scrubbed(mirror, simulator, "first") > old + timedelta(days=7), what="the scrub of the older")
    mirror.stop()
    older = age(mirror, simulator, "second", 9)
    first = scrubbed(mirror, simulator, "first")
    mirror.start()
    eventually(lambda: scrubbed(mirror, simulator, "second") > older + timedelta(days=7), what="the other's turn")
    assert scrubbed(mirror, simulator, "first") == first
    assert young > older


def test_the_scrub_verifies_what_was_laid_out_by_hand_so_that_its_first_request_is_a_hit(
    mirror: MirrorProcess, simulator: Simulator
) -> None:
    mirror.stop()
    lay_out(mirror.store, simulator, "second")
    simulator.roll_over("second")
    mirror.start()
    eventually((image_file(mirror, simulator, "second").parent / "verified").exists, what="its verification")
    outcome = fetch(mirror.image_url)
    assert_right(outcome, simulator, "second")
    assert outcome.cache_status == "pps-mirror; hit"
    assert simulator.counters().image_requests == 0


def test_a_mirror_that_scrubs_stops_at_once(fresh_mirror: FreshMirror, simulator: Simulator) -> None:
    mirror = fresh_mirror({"store": {"scrub_interval": "1ms"}})
    assert_right(fetch(mirror.image_url), simulator)
    eventually(lambda: "scrub.good" in mirror.actions())
    assert mirror.stop() == 0
