"""Fetching ahead: on an interval, in a window, on demand; paused when the window ends, unless somebody waits."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator
from tests.support.admin import CHANGING, actions_of, ask_admin, is_stored, metric, status_of
from tests.support.downloads import Download, fetch
from tests.support.fixtures import FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

MIB = 1 << 20
SIZE = 8 * MIB
QUICK = {"mirror.images.prefetch:FIRST": 0.0, "mirror.images.prefetch:TICK": 0.1}
OWN = {"DATAROBOT_API_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    images = [
        ImageSpec(name, size=SIZE, created=f"2026-01-0{day}T00:00:00Z")
        for day, name in enumerate(("first", "second"), 1)
    ]
    with Simulator.start(images) as simulator:
        yield simulator


Clocked = Callable[..., ForkedMirror]


@pytest.fixture
def clocked(tmp_path: Path, simulator: Simulator) -> Iterator[Clocked]:
    """Mirrors whose clock the test sets, with a window by night."""
    with ExitStack() as running:

        def start(at: str, sections: Mapping[str, Mapping[str, Any]] | None = None) -> ForkedMirror:
            prefetch = {"enabled": True, "interval": "1s", "window": "22:00-06:00"}
            everything: dict[str, Mapping[str, Any]] = {"prefetch": prefetch, "auth": {"mode": "open"}}
            everything |= sections or {}
            mirror = ForkedMirror(tmp_path / "mirror", simulator.api_url, everything, OWN)
            mirror.constants = QUICK
            mirror.set_clock(at)
            return running.enter_context(mirror)

        yield start


def stored(mirror: MirrorProcess, simulator: Simulator, name: str = "first") -> bool:
    return is_stored(mirror, simulator.image_sha256(name))


def partial(mirror: MirrorProcess, simulator: Simulator, name: str = "first") -> int:
    path = mirror.store / "partial" / simulator.image_sha256(name)
    return path.stat().st_size if path.exists() else 0


def test_a_new_image_is_there_before_anybody_asks(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"prefetch": {"enabled": True, "interval": "1s"}}, environ=OWN)
    eventually(lambda: stored(mirror, simulator), what="the first image")
    simulator.roll_over("second")
    eventually(lambda: stored(mirror, simulator, "second"), what="the second image")
    assert len(simulator.log("store")) == 2
    with Download(mirror.image_url) as download:
        assert download.read_all().header("Cache-Status") == "pps-mirror; hit"
    assert status_of(mirror)["prefetch"]["enabled"]
    assert "looks every 1s" in status_of(mirror)["prefetch"]["doing"]
    assert metric(mirror, "prefetches_total", outcome="began") == 2


def test_outside_the_window_nothing_is_fetched_and_the_page_says_when_it_will_be(
    simulator: Simulator, clocked: Clocked
) -> None:
    mirror = clocked("2026-11-23T12:00:00")
    time.sleep(1)
    assert not simulator.log()
    prefetch = status_of(mirror)["prefetch"]
    assert prefetch["doing"] == "waits for 22:00-06:00"
    mirror.set_clock("2026-11-23T22:00:00")
    eventually(lambda: stored(mirror, simulator), what="the image, by night")


def test_a_fill_pauses_when_its_window_ends_and_goes_on_in_the_next_night(
    simulator: Simulator, clocked: Clocked
) -> None:
    simulator.set_rate(2 * MIB)
    mirror = clocked("2026-11-24T05:59:00")
    eventually(lambda: partial(mirror, simulator) > MIB, what="a part of the image")
    mirror.set_clock("2026-11-24T06:00:00")
    eventually(lambda: "prefetch.paused" in actions_of(mirror), what="the pause")
    assert "was paused at" in status_of(mirror)["prefetch"]["doing"]
    eventually(lambda: "fill.stopped" in actions_of(mirror), what="the end of what was being written")
    at = partial(mirror, simulator)
    time.sleep(1)
    assert partial(mirror, simulator) == at < SIZE
    simulator.set_rate(None)
    mirror.set_clock("2026-11-24T22:00:01")
    eventually(lambda: stored(mirror, simulator), what="the rest of it")
    ranges = [asked.range for asked in simulator.log("store")]
    assert ranges[0] is None
    assert ranges[-1] == f"bytes={at}-"


def test_a_client_that_waits_keeps_it_from_pausing(simulator: Simulator, clocked: Clocked) -> None:
    simulator.set_rate(2 * MIB)
    mirror = clocked("2026-11-24T05:59:00")
    eventually(lambda: partial(mirror, simulator) > MIB, what="a part of the image")
    with Download(mirror.image_url) as download:
        mirror.set_clock("2026-11-24T06:00:00")
        time.sleep(1)
        simulator.set_rate(None)
        assert download.read_all().ended == "complete"
    assert "prefetch.paused" not in actions_of(mirror)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_clients_request_overrides_the_pause(simulator: Simulator, clocked: Clocked, workers: int) -> None:
    simulator.set_rate(2 * MIB)
    mirror = clocked("2026-11-24T05:59:00", {"server": {"workers": workers}})
    eventually(lambda: partial(mirror, simulator) > MIB, what="a part of the image")
    mirror.set_clock("2026-11-24T06:00:00")
    eventually(lambda: "prefetch.paused" in actions_of(mirror), what="the pause")
    simulator.set_rate(None)
    assert fetch(mirror.image_url).ended == "complete"
    assert (mirror.store / "images" / simulator.image_sha256("first") / "image").exists()


def test_a_client_of_a_worker_takes_over_what_is_paused(simulator: Simulator, clocked: Clocked) -> None:
    simulator.set_rate(2 * MIB)
    mirror = clocked("2026-11-24T05:59:00", {"server": {"workers": 2}})
    eventually(lambda: partial(mirror, simulator) > MIB, what="a part of the image")
    with Download(mirror.image_url) as download:
        download.read(MIB)
        mirror.set_clock("2026-11-24T06:00:00")
        time.sleep(0.5)
        simulator.set_rate(None)
        assert download.read_all().ended == "complete"
    assert len([asked for asked in simulator.log("store") if asked.status == 200]) == 1, "one whole fetch"


@pytest.mark.parametrize("enabled", [False, True])
def test_an_operator_fetches_now_also_by_day(simulator: Simulator, clocked: Clocked, enabled: bool) -> None:
    prefetch = {"enabled": enabled, "interval": "1s", "window": "22:00-06:00"}
    mirror = clocked("2026-11-24T12:00:00", {"prefetch": prefetch})
    answer = ask_admin(mirror, "POST", "/api/prefetch", CHANGING)
    assert (answer.status, "is being fetched" in answer.json["message"]) == (200, True)
    eventually(lambda: stored(mirror, simulator), what="the image")
    again = ask_admin(mirror, "POST", "/api/prefetch", CHANGING)
    assert "is stored" in again.json["message"]
    assert len(simulator.log("store")) == 1


def test_without_a_token_it_says_what_is_missing(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"prefetch": {"enabled": True, "interval": "1s"}})
    eventually(lambda: "prefetch.failed" in actions_of(mirror), what="a failure")
    time.sleep(2)
    missing = "upstream answered 401, for it wants a token: set upstream.token_file or DATAROBOT_API_TOKEN"
    assert [each["message"] for each in mirror.settled.events("prefetch.failed")] == [f"prefetching fails: {missing}"]
    assert missing in status_of(mirror)["prefetch"]["doing"]
    answer = ask_admin(mirror, "POST", "/api/prefetch", CHANGING)
    assert (answer.status, missing in answer.json["message"]) == (502, True)


def test_a_token_that_is_refused_is_said_to_be(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    wrong = {"DATAROBOT_API_TOKEN": "nobody-gave-this-out"}
    mirror = fresh_mirror({"prefetch": {"enabled": True, "interval": "1s"}}, environ=wrong)
    said = "prefetching fails: upstream answered 401, for it refuses the mirror's own token"
    eventually(lambda: "prefetch.failed" in mirror.actions(), what="the failure")
    assert mirror.settled.events("prefetch.failed")[0]["message"] == said


def test_a_failure_is_tried_again_at_the_next_look(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    simulator.fault(Fault("metadata", status=503, times=2))
    mirror = fresh_mirror({"prefetch": {"enabled": True, "interval": "1s"}}, environ=OWN)
    eventually(lambda: stored(mirror, simulator), what="the image")
    assert metric(mirror, "prefetches_total", outcome="failed") == 2


def test_with_when_stored_clients_switch_when_the_new_image_was_fetched_by_night(
    simulator: Simulator, clocked: Clocked
) -> None:
    mirror = clocked("2026-11-24T23:00:00", {"upstream": {"rollover": "when_stored", "metadata_ttl": "0s"}})
    eventually(lambda: stored(mirror, simulator), what="the first image")
    simulator.set_rate(2 * MIB)
    simulator.roll_over("second")
    mirror.set_clock("2026-11-24T23:00:02")
    eventually(lambda: "image.announced" in actions_of(mirror), what="the announcement")
    assert status_of(mirror)["current"]["hash"] == simulator.image_sha256("first")
    assert status_of(mirror)["current"]["announced"] == simulator.image_sha256("second")
    with Download(mirror.image_url) as download:
        assert simulator.image_sha256("first") in download.header("ETag")
    simulator.set_rate(None)
    eventually(lambda: stored(mirror, simulator, "second"), what="the second image")
    with Download(mirror.image_url) as download:
        assert simulator.image_sha256("second") in download.header("ETag")


def test_what_an_operator_wants_does_not_pause_though_it_was_begun_by_night(
    simulator: Simulator, clocked: Clocked
) -> None:
    simulator.set_rate(2 * MIB)
    mirror = clocked("2026-11-24T05:59:00")
    eventually(lambda: partial(mirror, simulator) > MIB, what="a part of the image")
    answer = ask_admin(mirror, "POST", "/api/prefetch", CHANGING)
    assert "is on its way already" in answer.json["message"]
    mirror.set_clock("2026-11-24T06:00:00")
    eventually(lambda: stored(mirror, simulator), what="the image, by day")
    assert "prefetch.paused" not in actions_of(mirror)


def test_it_pauses_when_the_last_client_has_left(simulator: Simulator, clocked: Clocked) -> None:
    simulator.set_rate(MIB)
    mirror = clocked("2026-11-24T05:59:00")
    eventually(lambda: partial(mirror, simulator) > MIB // 2, what="a part of the image")
    with Download(mirror.image_url):
        mirror.set_clock("2026-11-24T06:00:00")
        eventually(lambda: "waits for" in status_of(mirror)["prefetch"]["doing"], what="the end of the window")
        at = partial(mirror, simulator)
        eventually(lambda: partial(mirror, simulator) > at, what="progress beyond it")
        assert "prefetch.paused" not in actions_of(mirror)
    eventually(lambda: "prefetch.paused" in actions_of(mirror), what="the pause")


def test_all_that_was_begun_by_night_pauses_also_what_is_not_current_any_more(
    simulator: Simulator, clocked: Clocked
) -> None:
    simulator.set_rate(MIB)
    mirror = clocked("2026-11-24T05:58:00", {"upstream": {"metadata_ttl": "0s"}})
    eventually(lambda: partial(mirror, simulator) > 0, what="a part of the first image")
    simulator.roll_over("second")
    mirror.set_clock("2026-11-24T05:59:00")
    eventually(lambda: partial(mirror, simulator, "second") > 0, what="a part of the second image")
    mirror.set_clock("2026-11-24T06:00:00")
    eventually(lambda: actions_of(mirror).count("prefetch.paused") == 2, what="both pauses")


def test_a_failed_look_is_repeated_in_the_same_night_and_what_is_stored_does_not_hide_it(
    simulator: Simulator, clocked: Clocked
) -> None:
    nightly = {"enabled": True, "interval": "1d", "window": "22:00-06:00"}
    mirror = clocked("2026-11-24T23:00:00", {"prefetch": nightly, "upstream": {"metadata_ttl": "0s"}})
    eventually(lambda: "is stored" in status_of(mirror)["prefetch"]["doing"], what="the first image")
    simulator.roll_over("second")
    simulator.fault(Fault("metadata", status=503, times=None))
    mirror.set_clock("2026-11-25T23:30:00")
    eventually(lambda: "the last look failed" in status_of(mirror)["prefetch"]["doing"], what="the failure")
    simulator.clear_faults()
    mirror.set_clock("2026-11-25T23:35:01")
    eventually(lambda: stored(mirror, simulator, "second"), what="the second image")
