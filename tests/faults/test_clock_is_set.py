"""Somebody sets the clock: nobody gets in by that, nobody is locked out, and what is new is seen as soon as ever."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, Simulator
from tests.support.fixtures import Ask, FreshMirror
from tests.support.processes import MirrorProcess, eventually
from tests.support.set_clock import WallClock

pytestmark = pytest.mark.real_command

HOUR = 3600
OTHER = "another-good-token"
SOON = {"auth": {"ttl": "1s"}, "upstream": {"metadata_ttl": "1s", "stale_if_error": "30m"}}
WORKERS: dict[str, dict[str, Any]] = {**SOON, "server": {"workers": 2}}


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path / "time")


def go_away(simulator: Simulator) -> None:
    simulator.fault(Fault("metadata", status=503, times=None))


def refusing(mirror: MirrorProcess) -> set[int]:
    """The processes that have refused somebody: no others have heard that a token was revoked."""
    return {
        event["process.pid"] for event in mirror.events("http.request") if event["http.response.status_code"] == 401
    }


def noted(mirror: MirrorProcess) -> Any:
    return json.loads((mirror.store / "access.json").read_text())


@pytest.mark.parametrize("step", [-HOUR, HOUR], ids=["back", "ahead"])
@pytest.mark.parametrize("sections", [SOON, WORKERS], ids=["one process", "workers"])
def test_a_revoked_token_is_refused_and_a_new_image_is_seen_as_if_nothing_had_been_set(
    fresh_mirror: FreshMirror,
    simulator: Simulator,
    ask: Ask,
    clock: WallClock,
    sections: dict[str, dict[str, Any]],
    step: int,
) -> None:
    mirror = fresh_mirror(sections, environ=clock.environ)
    for _ in range(4):
        assert [ask(mirror.image_url, token).status for token in (TOKEN, OTHER)] == [200, 200]
    clock.step(step)
    simulator.set_tokens([OTHER])
    simulator.roll_over("second")
    eventually(lambda: ask(mirror.image_url, TOKEN).status == 401, what="the refusal")
    eventually(lambda: ask(mirror.image_url, OTHER).body == simulator.read("second"), what="the new image")
    simulator.roll_over("first")
    eventually(
        lambda: (
            {ask(mirror.image_url, TOKEN).status for _ in range(6)} == {401}
            and len(refusing(mirror)) == sections.get("server", {}).get("workers", 1)
        ),
        what="every worker's refusal",
    )
    go_away(simulator)
    clock.step(2 * step)
    by_hash = f"{mirror.url}/mirror/v1/images/{simulator.image_sha256('first')}/"
    for _ in range(6):
        assert {ask(url, TOKEN).status for url in (mirror.image_url, by_hash)} <= {401, 503}
        assert ask(by_hash, OTHER).status == 200  # whom upstream let in it lets in
    eventually(lambda: ask(by_hash, TOKEN).status == 503, what="the end of the refusal that was remembered")


@pytest.mark.parametrize("step", [-HOUR, HOUR], ids=["back", "ahead"])
def test_a_new_image_is_seen_also_where_nobody_is_asked_who_may_read(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask, clock: WallClock, step: int
) -> None:
    mirror = fresh_mirror({"auth": {"mode": "open"}, "upstream": {"metadata_ttl": "1s"}}, environ=clock.environ)
    assert ask(mirror.image_url).body == simulator.read("first")
    clock.step(step)
    simulator.roll_over("second")
    eventually(lambda: ask(mirror.image_url).body == simulator.read("second"), what="the new image")


@pytest.mark.parametrize("away", [False, True], ids=["upstream there", "upstream away"])
def test_after_a_restart_a_time_that_is_yet_to_come_lets_nobody_in_unasked(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask, clock: WallClock, away: bool
) -> None:
    mirror = fresh_mirror({"auth": {"ttl": "1h"}, "upstream": {"metadata_ttl": "1h"}}, environ=clock.environ)
    by_hash = f"{mirror.url}/mirror/v1/images/{simulator.image_sha256('first')}/"
    assert ask(mirror.image_url).status == 200
    eventually((mirror.store / "access.json").exists)
    mirror.stop()
    clock.step(-HOUR)
    simulator.set_tokens([OTHER])
    mirror.start()
    if away:
        assert ask(mirror.image_url, OTHER).status == 200  # so it is known what is current, and of now
        go_away(simulator)
    for url in (by_hash, mirror.image_url, mirror.metadata_url):
        assert ask(url).status == (503 if away else 401)


def test_what_a_wrong_clock_wrote_is_put_right_and_does_not_come_alive_later(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask, clock: WallClock
) -> None:
    clock.step(24 * HOUR)
    mirror = fresh_mirror({**SOON, "auth": {"ttl": "0s"}}, environ=clock.environ)
    assert ask(mirror.image_url).status == 200
    eventually((mirror.store / "access.json").exists)
    assert max(noted(mirror)["accepted"].values()) > time.time() + HOUR
    mirror.stop()
    clock.step(0)
    mirror.start()
    eventually(lambda: max(noted(mirror)["accepted"].values()) < time.time(), what="the file's correction")
    assert ask(mirror.image_url).status == 200
    mirror.stop()
    go_away(simulator)
    mirror.start()
    assert ask(mirror.image_url).status == 200  # let in since, by the clock as it is


@pytest.fixture(params=["access.json", "current.json"])
def changed_by_hand(
    request: pytest.FixtureRequest, fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> MirrorProcess:
    """A mirror that was stopped, and whose notes tell of times that are yet to come: one of the two that count."""
    mirror = fresh_mirror(SOON)
    assert ask(mirror.image_url).status == 200
    eventually((mirror.store / "access.json").exists)
    mirror.stop()
    note = json.loads((mirror.store / request.param).read_text())
    if request.param == "access.json":
        note["accepted"] = {name: when + HOUR for name, when in note["accepted"].items()}
    else:
        note["fetchedAt"] = "2199-01-01T00:00:00+00:00"
    (mirror.store / request.param).write_text(json.dumps(note))
    image = mirror.store / "images" / simulator.image_sha256("first")
    verified = json.loads((image / "verified").read_text())
    verified["verifiedAt"] = "2199-01-01T00:00:00+00:00"
    (image / "verified").write_text(json.dumps(verified))
    os.utime(image / "metadata.json", (7e9, 7e9))
    return mirror


def test_notes_of_times_that_are_yet_to_come_are_worth_nothing_and_written_anew(
    changed_by_hand: MirrorProcess, simulator: Simulator, ask: Ask
) -> None:
    mirror = changed_by_hand
    go_away(simulator)
    mirror.start()
    assert ask(mirror.image_url).status == 503
    verified = mirror.store / "images" / simulator.image_sha256("first") / "verified"
    eventually(lambda: not json.loads(verified.read_text())["verifiedAt"].startswith("2199"), what="the scrub")
    simulator.clear_faults()
    assert ask(mirror.image_url).status == 200
    current = json.loads((mirror.store / "current.json").read_text())
    assert not current["fetchedAt"].startswith("2199")
