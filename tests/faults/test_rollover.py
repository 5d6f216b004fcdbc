"""Guarantee 5: upstream has another image all of a sudden. Nothing is mixed, nothing has a wrong name."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator
from tests.support.commands import run, run_forked
from tests.support.downloads import Download, fetch
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually
from tests.support.rot import remove

SIZE = 3 << 20
CUT = 1_000_001
"""Where a transfer is held or cut, in bytes: before the holdback, on no boundary."""

ALWAYS_ASK = {"auth": {"ttl": "0s"}, "upstream": {"metadata_ttl": "0s"}}
WHEN_STORED = {"auth": {"ttl": "0s"}, "upstream": {"metadata_ttl": "0s", "rollover": "when_stored"}}


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    images = [
        ImageSpec("first", size=SIZE, created="2024-01-01T00:00:00Z"),
        ImageSpec("second", size=SIZE, created="2025-01-01T00:00:00Z"),
        ImageSpec("third", size=SIZE, created="2026-01-01T00:00:00Z"),
        ImageSpec("smaller", size=SIZE // 2, created="2025-02-01T00:00:00Z"),
    ]
    with Simulator.start(images) as simulator:
        yield simulator


Started = Callable[..., ForkedMirror]


@pytest.fixture
def started(tmp_path: Path, simulator: Simulator) -> Iterator[Started]:
    """Starts the test's mirror with these sections."""
    mirrors: list[ForkedMirror] = []

    def start(sections: dict[str, dict[str, Any]], **more: dict[str, Any]) -> ForkedMirror:
        mirrors.append(ForkedMirror(tmp_path / f"mirror-{len(mirrors)}", simulator.api_url, sections | more))
        return mirrors[-1].start()

    yield start
    simulator.clear_faults()
    for mirror in mirrors:
        if mirror.alive():
            mirror.stop()


def read(url: str, method: str = "GET") -> Download:
    with Download(url, method) as download:
        return download.read_all()


def shown(mirror: MirrorProcess) -> str:
    """The hash that metadata names."""
    answer = read(mirror.metadata_url)
    assert answer.status == 200
    return str(json.loads(answer.body)["hash"])


def stored(mirror: MirrorProcess) -> set[str]:
    return {path.name for path in (mirror.store / "images").iterdir() if (path / "image").exists()}


def assert_right(mirror: MirrorProcess, simulator: Simulator, *names: str) -> None:
    """What is stored is these images, each the bytes of its name."""
    assert stored(mirror) == {simulator.image_sha256(name) for name in names}
    for name in names:
        assert (mirror.store / "images" / simulator.image_sha256(name) / "image").read_bytes() == simulator.read(name)


def hit(mirror: MirrorProcess, simulator: Simulator, name: str) -> bool:
    """Whether it comes from the store; metadata and image are that image in any case.

    For a moment after an image has its name a request may still join the fill that gave it.
    """
    assert shown(mirror) == simulator.image_sha256(name)
    answer = read(mirror.image_url)
    assert answer.body == simulator.read(name)
    return answer.header("Cache-Status") == "pps-mirror; hit"


# at_once


@pytest.mark.parametrize("new", ["second", "smaller"])
def test_between_metadata_and_image_the_retry_at_the_latest_gets_the_new_one_and_nothing_else_is_whole(
    started: Started, simulator: Simulator, new: str
) -> None:
    mirror = started({})
    simulator.fault(Fault("metadata", roll_over=new))
    assert shown(mirror) == simulator.image_sha256("first")
    once = read(mirror.image_url)
    if once.ended == "complete":
        assert once.header("ETag") == f'"{simulator.image_sha256(new)}"'
        assert once.body == simulator.read(new)
    again = read(mirror.image_url)
    assert (again.ended, again.header("ETag")) == ("complete", f'"{simulator.image_sha256(new)}"')
    assert again.body == simulator.read(new)
    assert_right(mirror, simulator, new)


def test_during_a_fill_clients_of_both_images_get_the_one_they_asked_for_and_both_fill_at_once(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(ALWAYS_ASK)
    simulator.fault(Fault("store", hang_after=CUT, times=2))
    with Download(mirror.image_url) as old, Download(mirror.image_url) as beside:
        simulator.wait_held(1)
        simulator.roll_over("second")
        with Download(mirror.image_url) as new:
            simulator.wait_held(2)
            assert new.header("ETag") == f'"{simulator.image_sha256("second")}"'
            simulator.release()
            assert new.read_all().body == simulator.read("second")
        for download in (old, beside):
            assert download.header("ETag") == f'"{simulator.image_sha256("first")}"'
            assert download.read_all().body == simulator.read("first")
    assert simulator.counters().store_gets == 2
    assert_right(mirror, simulator, "first", "second")


@pytest.mark.parametrize("new", ["second", "smaller"])
def test_during_a_resume_clients_of_the_old_image_are_reset_and_their_retry_gets_the_new_one(
    started: Started, simulator: Simulator, new: str
) -> None:
    mirror = started(ALWAYS_ASK)
    simulator.fault(Fault("store", hang_after=CUT, cut_after=CUT, reset=True))
    with Download(mirror.image_url) as one, Download(mirror.image_url) as other:
        simulator.wait_held()
        simulator.roll_over(new)
        simulator.release()
        for download in (one, other):
            assert download.read_all().ended == "reset"
            assert download.body == simulator.read("first")[: len(download.body)]
    again = read(mirror.image_url)
    assert (again.ended, again.body) == ("complete", simulator.read(new))
    assert_right(mirror, simulator, new)


# when_stored


@contextmanager
def polling(mirror: MirrorProcess, simulator: Simulator) -> Iterator[list[str]]:
    """Clients that ask for metadata and image again and again; in the end the hashes that metadata named."""
    order = [simulator.image_sha256(name) for name in ("first", "second")]
    over: list[bool] = []

    def poll() -> list[str]:
        seen: list[str] = []
        while not over:
            named = shown(mirror)
            image = fetch(mirror.image_url)
            assert image.ended == "complete"
            assert image.cache_status in {"pps-mirror; hit", "pps-mirror; fwd=miss; collapsed"}  # named, not yet told
            steps = [order.index(each) for each in [*seen[-1:], named, image.sha256]]
            assert steps == sorted(steps), "back to the old image"
            seen += [named, image.sha256]
        return seen

    with ThreadPoolExecutor(3) as pool:
        pollers = [pool.submit(poll) for _ in range(3)]
        said: list[str] = []
        try:
            yield said
        finally:
            over.append(True)
            for each in pollers:
                said += each.result()


def test_clients_get_the_last_image_until_the_new_one_is_stored_and_then_the_new_one_only(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(WHEN_STORED)
    assert fetch(mirror.image_url).cache_status == "pps-mirror; fwd=miss; stored"  # there is no last one
    first, second = simulator.image_sha256("first"), simulator.image_sha256("second")
    simulator.fault(Fault("store", hang_after=CUT))
    simulator.roll_over("second")
    with polling(mirror, simulator) as seen:
        simulator.wait_held()
        for _ in range(3):
            assert hit(mirror, simulator, "first")
        assert [(each["hash"], each["current"]) for each in listed(mirror)] == [(first, True)]
        assert read(mirror.image_url, "HEAD").header("ETag") == f'"{first}"'
        with Download(mirror.image_url, headers={"Authorization": "Bearer none"}) as refused:
            assert refused.status == 401
        simulator.release()
        eventually(lambda: shown(mirror) == second)
        eventually(lambda: hit(mirror, simulator, "second"))
        assert {each["hash"]: each["current"] for each in listed(mirror)} == {second: True, first: False}
    assert set(seen) >= {first}
    assert [each["pps_mirror.image"] for each in mirror.settled.events("image.announced", "image.switched")] == [
        second
    ] * 2
    assert simulator.counters().store_gets == 2
    assert_right(mirror, simulator, "first", "second")


def listed(mirror: MirrorProcess) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = json.loads(read(f"{mirror.url}/mirror/v1/images/").body)
    return images


def pending(mirror: MirrorProcess, simulator: Simulator, **fault: Any) -> None:
    """Let the mirror have the first image, and the second be on its way."""
    assert fetch(mirror.image_url).ended == "complete"
    simulator.fault(Fault("store", **({"hang_after": CUT} | fault)))
    simulator.roll_over("second")
    assert shown(mirror) == simulator.image_sha256("first")


def test_who_asks_for_the_new_image_by_its_hash_joins_its_fill(started: Started, simulator: Simulator) -> None:
    mirror = started(WHEN_STORED)
    pending(mirror, simulator)
    simulator.wait_held()
    with Download(f"{mirror.url}/mirror/v1/images/{simulator.image_sha256('second')}/") as eager:
        assert eager.header("Cache-Status") == "pps-mirror; fwd=miss; collapsed"
        assert eager.read(CUT) == simulator.read("second", 0, CUT)
        assert hit(mirror, simulator, "first")
        simulator.release()
        assert eager.read_all().body == simulator.read("second")
    assert simulator.counters().store_gets == 2


def test_a_new_image_whose_bytes_are_wrong_never_shows_and_is_tried_again(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(WHEN_STORED)
    pending(mirror, simulator, hang_after=None, corrupt_at=SIZE // 2, times=2)
    with polling(mirror, simulator):
        eventually(lambda: shown(mirror) == simulator.image_sha256("second"))
        eventually(lambda: hit(mirror, simulator, "second"))
    assert [each["pps_mirror.position"] for each in mirror.settled.events("fill.wrong_bytes")] == [SIZE] * 2


def test_a_new_image_that_fails_is_not_tried_again_before_the_next_refresh(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(WHEN_STORED, upstream={"metadata_ttl": "1h", "rollover": "when_stored"})
    pending(mirror, simulator, hang_after=None, corrupt_at=SIZE // 2, times=None)
    eventually(lambda: "fill.wrong_bytes" in mirror.actions())
    for _ in range(10):
        assert hit(mirror, simulator, "first")
    assert simulator.counters().store_gets == 2


def test_a_head_begins_nothing(started: Started, simulator: Simulator) -> None:
    mirror = started(WHEN_STORED)
    assert fetch(mirror.image_url).ended == "complete"
    simulator.roll_over("second")
    for url in (mirror.metadata_url, mirror.image_url) * 2:
        assert read(url, "HEAD").status == 200
    assert f"fill of {simulator.image_sha256('second')}" not in mirror.settled.log()
    eventually(lambda: shown(mirror) == simulator.image_sha256("second"))


def test_after_a_crash_clients_go_on_with_the_image_they_got_last_also_while_upstream_is_away(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(WHEN_STORED)
    simulator.roll_over("third")  # newer than all others, and taken back
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("third")
    simulator.roll_over("first")
    eventually(lambda: shown(mirror) == simulator.image_sha256("first"))
    pending(mirror, simulator)
    simulator.wait_held()
    eventually(lambda: len(list((mirror.store / "partial").iterdir())) == 2)
    mirror.kill()
    simulator.clear_faults()
    simulator.fault(Fault("metadata", drop=True, times=None))
    mirror.start()
    stale = read(mirror.image_url)
    assert (stale.body, stale.header("Cache-Status")) == (simulator.read("first"), "pps-mirror; hit; detail=stale")
    assert shown(mirror) == simulator.image_sha256("first")
    simulator.clear_faults()
    eventually(lambda: shown(mirror) == simulator.image_sha256("second"))
    eventually(lambda: hit(mirror, simulator, "second"))


def test_when_the_last_image_is_removed_clients_get_the_new_one_while_it_arrives(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(WHEN_STORED)
    pending(mirror, simulator)
    simulator.wait_held()
    remove(mirror.store / "images" / simulator.image_sha256("first"))
    assert shown(mirror) == simulator.image_sha256("second")
    with Download(mirror.image_url) as download:
        assert download.header("Cache-Status") == "pps-mirror; fwd=miss; collapsed"
        assert download.read(CUT) == simulator.read("second", 0, CUT)
        simulator.release()
        assert download.read_all().body == simulator.read("second")


def test_when_upstream_rolls_over_again_meanwhile_the_newest_image_wins(started: Started, simulator: Simulator) -> None:
    mirror = started(WHEN_STORED)
    pending(mirror, simulator)
    simulator.wait_held()
    simulator.roll_over("third")
    eventually(lambda: shown(mirror) == simulator.image_sha256("third"))
    assert f"{simulator.image_sha256('second')} is stored: clients get it now" not in mirror.settled.log()
    simulator.release()
    eventually(lambda: simulator.image_sha256("second") in stored(mirror))
    eventually(lambda: hit(mirror, simulator, "third"))
    assert_right(mirror, simulator, "first", "second", "third")


def test_when_upstream_takes_the_new_image_back_clients_never_see_it(started: Started, simulator: Simulator) -> None:
    mirror = started(WHEN_STORED)
    pending(mirror, simulator)
    simulator.wait_held()
    simulator.roll_over("first")
    assert shown(mirror) == simulator.image_sha256("first")
    simulator.release()
    eventually(lambda: simulator.image_sha256("second") in stored(mirror))
    assert hit(mirror, simulator, "first")


def test_a_store_without_room_for_the_new_image_goes_on_with_the_last_one_and_fetches_nothing(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(WHEN_STORED, store={"max_size": "5MiB"})
    pending(mirror, simulator)
    eventually(lambda: "fill.not_begun" in mirror.actions())
    for _ in range(3):
        assert hit(mirror, simulator, "first")
    assert simulator.counters().store_gets == 1


def test_all_workers_switch_when_the_image_is_in_the_store_whoever_stored_it(
    tmp_path: Path, simulator: Simulator
) -> None:
    with ForkedMirror(tmp_path / "mirror", simulator.api_url, WHEN_STORED | {"server": {"workers": 2}}) as mirror:
        pending(mirror, simulator)
        simulator.wait_held()
        assert {shown(mirror) for _ in range(16)} == {simulator.image_sha256("first")}
        assert simulator.counters().store_gets == 2
        simulator.release()
        eventually(lambda: shown(mirror) == simulator.image_sha256("second"))
        for _ in range(8):  # as soon as one of them does
            eventually(lambda: hit(mirror, simulator, "second"))
        assert simulator.counters().store_gets == 2


def test_what_pull_brings_is_shown_at_once(started: Started, simulator: Simulator) -> None:
    mirror = started(WHEN_STORED)
    assert fetch(mirror.image_url).ended == "complete"
    simulator.roll_over("second")
    environ = {"DATAROBOT_API_TOKEN": TOKEN}
    assert run_forked("pull", "-c", mirror.config_file, environ=environ).returncode == 0
    eventually(lambda: hit(mirror, simulator, "second"))
    assert "image.announced" not in mirror.settled.actions()


def test_the_background_fill_uses_the_mirrors_own_token_when_it_has_one(
    started: Started, simulator: Simulator, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("the-mirrors-own-token\n")
    token.chmod(0o600)
    simulator.set_tokens([*simulator.setup.tokens, "the-mirrors-own-token"])
    try:
        mirror = started(WHEN_STORED, upstream=WHEN_STORED["upstream"] | {"token_file": str(token)})
        pending(mirror, simulator)
        simulator.wait_held()
        asked = {each.authorization for each in simulator.log("image")}
        theirs = {each.authorization for each in simulator.log("metadata")}
        assert len(asked) == len(theirs) == 1
        assert asked != theirs
    finally:
        simulator.clear_faults()
        simulator.set_tokens(simulator.setup.tokens)


def test_ls_says_of_the_last_image_that_it_is_current_while_the_new_one_is_on_its_way(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(WHEN_STORED)
    pending(mirror, simulator)
    simulator.wait_held()
    said = json.loads(run("ls", "--json", "-c", mirror.config_file).stdout)
    assert [(each["hash"], each["current"]) for each in said] == [(simulator.image_sha256("first"), True)]


def test_a_mirror_that_switched_at_once_until_now_goes_on_with_what_was_current(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(ALWAYS_ASK)
    simulator.roll_over("third")
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("third")
    simulator.roll_over("first")
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    mirror.stop()
    text = mirror.config_file.read_text()
    mirror.config_file.write_text(text.replace("[upstream]\n", '[upstream]\nrollover = "when_stored"\n'))
    mirror.start()
    simulator.fault(Fault("store", hang_after=CUT))
    simulator.roll_over("second")
    assert hit(mirror, simulator, "first")
    simulator.wait_held()
    mirror.kill()
    simulator.clear_faults()
    simulator.fault(Fault("metadata", drop=True, times=None))
    mirror.start()
    assert shown(mirror) == simulator.image_sha256("first")


def test_the_image_that_clients_get_is_not_evicted_for_the_new_one(started: Started, simulator: Simulator) -> None:
    """Not even when others were stored later and nothing else may go."""
    mirror = started(WHEN_STORED, store={"max_size": "7MiB", "keep": 1})
    assert fetch(mirror.image_url).ended == "complete"
    simulator.roll_over("third")
    eventually(lambda: shown(mirror) == simulator.image_sha256("third"))
    simulator.roll_over("first")
    assert hit(mirror, simulator, "first")
    simulator.roll_over("second")
    assert shown(mirror) == simulator.image_sha256("first")
    eventually(lambda: "fill.not_begun" in mirror.actions())
    assert hit(mirror, simulator, "first")
    assert_right(mirror, simulator, "first", "third")


def test_an_image_that_was_never_stored_is_not_waited_with(started: Started, simulator: Simulator) -> None:
    mirror = started(WHEN_STORED)
    simulator.fault(Fault("store", hang_after=CUT, times=2))
    with Download(mirror.image_url) as old:
        simulator.wait_held(1)
        simulator.roll_over("second")
        first, second = simulator.image_sha256("first"), simulator.image_sha256("second")
        assert shown(mirror) == second
        assert [each["pps_mirror.image"] for each in mirror.settled.events("image.switched")] == [second]
        with Download(mirror.image_url) as new:
            simulator.wait_held(2)
            assert new.header("ETag") == f'"{second}"'
            simulator.release()
            assert new.read_all().body == simulator.read("second")
        assert old.read_all().body == simulator.read("first")
    eventually(lambda: hit(mirror, simulator, "second"))
    assert stored(mirror) == {first, second}


def set_rollover(mirror: ForkedMirror, to: str) -> None:
    """Start it again with the other way of switching."""
    mirror.stop()
    before = {"at_once": "when_stored", "when_stored": "at_once"}[to]
    text = mirror.config_file.read_text()
    assert f'rollover = "{before}"' in text
    mirror.config_file.write_text(text.replace(f'rollover = "{before}"', f'rollover = "{to}"'))
    mirror.start()


def test_what_clients_got_before_a_time_of_switching_at_once_does_not_come_back(
    started: Started, simulator: Simulator
) -> None:
    mirror = started(WHEN_STORED)
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("first")
    set_rollover(mirror, "at_once")
    simulator.roll_over("third")
    assert fetch(mirror.image_url).sha256 == simulator.image_sha256("third")
    set_rollover(mirror, "when_stored")
    simulator.fault(Fault("store", hang_after=CUT))
    simulator.roll_over("second")
    assert hit(mirror, simulator, "third")
