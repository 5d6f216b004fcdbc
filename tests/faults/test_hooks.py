"""What hooks promise when things break: kill -9 at each step, a full disk, other processes, a fleet."""

import contextlib
import http.client
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.simulator.client import Simulator
from tests.support.downloads import fetch
from tests.support.fixtures import FreshMirror
from tests.support.forked import ForkedMirror, Step, Steps
from tests.support.hooks import hook, in_environment
from tests.support.processes import eventually
from tests.support.receiver import Receiver
from tests.support.s3.replicas import Replicas
from tests.support.small_disk import SmallDisk

BOTH = {"image.current", "image.stored"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def begun(directory: Path, simulator: Simulator, receiver: Receiver, step: Step | None = None) -> ForkedMirror:
    """A mirror that has fetched and told everything, or has died before this step."""
    receiver.told.clear()
    mirror = ForkedMirror(directory, simulator.api_url, environ=in_environment(hook(url=receiver.url)))
    mirror.steps = Steps(directory / "steps", die_at=step)
    mirror.start()
    with contextlib.suppress(OSError, http.client.HTTPException):
        fetch(mirror.image_url)
    file = mirror.store / "hooks" / "it.jsonl"

    def told() -> bool:
        return set(receiver.once) >= BOTH and file.stat().st_size == 0

    eventually(lambda: not mirror.alive() or told(), what="all that there is to tell")
    return mirror


def killed_at(directory: Path, simulator: Simulator, receiver: Receiver, step: Step) -> bool:
    """Run a mirror that dies before this step and one after it, and hold what was told against what happened.

    Returns whether the step came: what one event does depends on whether the one before it has been delivered.
    """
    mirror = begun(directory, simulator, receiver, step)
    try:
        mirror.wait_dead(1)
    except subprocess.TimeoutExpired:
        mirror.kill()
        return False
    mirror.steps = None
    with mirror:
        assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
        receiver.wait_for(*BOTH)
    assert sorted(receiver.once) == sorted(BOTH), step
    return True


def test_killed_at_any_step_it_tells_everything_and_what_it_tells_twice_has_the_same_id(
    tmp_path: Path, simulator: Simulator, receiver: Receiver
) -> None:
    mirror = begun(tmp_path / "whole", simulator, receiver)
    mirror.kill()
    assert mirror.steps is not None
    ours = [step for step in mirror.steps.read() if "hooks" in (step.path.split("/")[0], step.target.split("/")[0])]
    assert {step.call for step in ours} >= {"create", "pwrite", "fdatasync", "ftruncate", "rename", "fsync"}
    assert len(ours) > 20
    for number, step in enumerate(ours):
        attempts = (tmp_path / f"{number}.{attempt}" for attempt in range(5))
        assert any(killed_at(directory, simulator, receiver, step) for directory in attempts), f"{step} never came"


def test_killed_between_the_answer_and_the_note_of_it_it_tells_once_more_with_the_same_id(
    tmp_path: Path, simulator: Simulator, receiver: Receiver
) -> None:
    variable = in_environment(hook(url=receiver.url, events=["image.stored"]))
    mirror = ForkedMirror(tmp_path, simulator.api_url, environ=variable)
    mirror.start()
    fetch(mirror.image_url)
    receiver.wait_for("image.stored")
    mirror.kill()
    file = mirror.store / "hooks" / "it.jsonl"
    file.write_bytes(receiver.told[0].body + b"\n")  # as if the note had not got to the disk
    with mirror:
        eventually(lambda: len(receiver.told) > 1)
        eventually(lambda: file.stat().st_size == 0)
    assert len(set(receiver.ids)) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_keeps_nobody_from_being_told_of_it(
    tmp_path: Path, fresh_mirror: FreshMirror, receiver: Receiver, workers: int
) -> None:
    with SmallDisk(tmp_path / "small", 24 << 20) as disk:
        mirror = fresh_mirror(
            {
                "server": {"workers": workers},
                "store": {"path": str(disk.path / "store")},
                "log": {"format": "json"},
            },
            environ=in_environment(hook(url=receiver.url, events=["store.failing"])),
        )
        disk.fill_up()
        assert fetch(mirror.image_url).status == 200
        receiver.wait_for("store.failing")
        assert "hook.unqueued" in mirror.settled.actions()
        mirror.stop()


def test_another_mirror_on_the_store_goes_on_when_the_one_that_tells_is_killed(
    tmp_path: Path, fresh_mirror: FreshMirror, receiver: Receiver
) -> None:
    sections = {"store": {"path": str(tmp_path / "shared")}}
    variable = in_environment(hook(url=receiver.url))
    first = fresh_mirror(sections, environ=variable)
    second = fresh_mirror(sections, environ=variable)
    fetch(second.image_url)
    receiver.wait_for(*BOTH)
    assert sorted(receiver.once) == sorted(BOTH)
    assert "hook.delivered" not in second.settled.actions()
    receiver.told.clear()
    receiver.answers = [500]
    (tmp_path / "shared" / "hooks" / "it.jsonl").write_bytes(b"")
    first.kill()
    assert fetch(second.image_url).status == 200
    with (tmp_path / "shared" / "hooks" / "it.jsonl").open("ab") as file:
        file.write(
            b'{"specversion":"1.0","id":"1","type":"fill.failed","time":"2026-01-01T00:00:00+00:00","data":{}}\n'
        )
    receiver.wait_for("fill.failed")
    eventually(lambda: "hook.delivered" in second.actions())


def test_an_event_that_nobody_takes_for_a_day_is_given_up_and_those_behind_it_are_not(
    fresh_mirror: FreshMirror, receiver: Receiver
) -> None:
    receiver.status = 503
    mirror = fresh_mirror(environ=in_environment(hook(url=receiver.url, events=["fill.failed", "import.finished"])))
    assert fetch(mirror.image_url).status == 200
    lines = [
        b'{"specversion":"1.0","id":"old","type":"fill.failed","time":"2020-01-01T00:00:00+00:00","data":{}}\n',
        b'{"specversion":"1.0","id":"new","type":"import.finished","time":"2999-01-01T00:00:00+00:00","data":{}}\n',
    ]
    with (mirror.store / "hooks" / "it.jsonl").open("ab") as file:
        file.write(b"".join(lines))
    receiver.wait_for("import.finished", seconds=60)
    assert receiver.ids.count("old") == 5
    assert "hook.given_up" in mirror.settled.actions()
    receiver.status = 204
    eventually(lambda: "hook.delivered" in mirror.actions(), 60)


def test_what_is_no_event_is_left_out(fresh_mirror: FreshMirror, receiver: Receiver) -> None:
    mirror = fresh_mirror(environ=in_environment(hook(url=receiver.url)))
    mirror.stop()
    file = mirror.store / "hooks" / "it.jsonl"
    file.write_bytes(b'{"id": "x"}\n{broken}\n[]\n\0\0\0{"specversion"\n')
    mirror.start()
    fetch(mirror.image_url)
    receiver.wait_for(*BOTH)
    assert sorted(receiver.once) == sorted(BOTH)
    eventually(lambda: file.stat().st_size == 0)


def test_mirrors_over_one_bucket_tell_once_what_is_the_buckets(replicas: Replicas, receiver: Receiver) -> None:
    variable = in_environment(hook(url=receiver.url)) | dict(replicas.bucket.server.environ)
    mirrors = [replicas.make(name, local_copy=True, environ=variable) for name in ("one", "two", "three")]
    with contextlib.ExitStack() as running:
        for mirror in mirrors:
            running.enter_context(mirror)
        for mirror in mirrors:
            replicas.assert_right(fetch(mirror.image_url))
            eventually(replicas.arrived)
        receiver.wait_for(*BOTH)
        for mirror in mirrors:
            eventually(lambda mirror=mirror: status_is_quiet(mirror))  # type: ignore[misc]
    assert sorted(receiver.once) == sorted(BOTH)


def status_is_quiet(mirror: ForkedMirror) -> bool:
    """Nothing waits in the queues of a mirror."""
    files = list((mirror.store / "hooks").glob("*.jsonl"))
    return all(file.stat().st_size == 0 for file in files)
