"""Mirrors that lead back to themselves: an answer that says so, soon, instead of requests that go round and round."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Simulator
from tests.support.circles import Gate, circle, relay
from tests.support.downloads import Download
from tests.support.fixtures import Ask, FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

SOON = 20.0
"""Seconds within which the answer must be there. Alone it takes less than one; others may use this machine.

Where requests wait for one another it would be twice `PATIENT`."""

PATIENT = {"upstream": {"connect_timeout": "60s"}}

VERSION = "/api/v2/version/"


def loop_message(answer: Download | Any) -> str:
    assert (answer.status, answer.header("Content-Type")) == (508, "application/json"), answer.body
    text = json.loads(answer.body)["message"]
    assert isinstance(text, str)
    return text


def requests(mirror: MirrorProcess) -> int:
    """How many it was asked, by its log."""
    return mirror.log().count(", from 127.0.0.1, request ")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mirror_that_is_its_own_upstream_says_so_soon(tmp_path: Path, ask: Ask, workers: int) -> None:
    mirror = ForkedMirror(tmp_path / "mirror", "http://127.0.0.1:9", {"server": {"workers": workers}})
    with relay(mirror.port) as port:
        mirror.config_file.write_text(mirror.config_file.read_text().replace(':9"', f':{port}"'))
        with mirror:
            began = time.monotonic()
            for url in (mirror.metadata_url, mirror.image_url):
                assert "set upstream.url" in loop_message(ask(url))
            assert "leads back here" in loop_message(ask(mirror.url + VERSION))
            assert time.monotonic() - began < SOON
            # Each came back once and no more, to whichever worker.
            eventually(lambda: requests(mirror) >= 6, what="the log of all requests")
            assert requests(mirror) == 6
    assert "upstream is away: upstream answered 508" in mirror.settled.log()


def test_two_mirrors_in_a_circle_answer_soon_also_when_both_are_asked_at_the_same_time(
    tmp_path: Path, ask: Ask
) -> None:
    with circle(tmp_path, PATIENT) as mirrors, ThreadPoolExecutor(16) as clients:
        began = time.monotonic()
        urls = [each.image_url for each in mirrors] * 8
        for answer in clients.map(ask, urls):
            assert "set upstream.url" in loop_message(answer)
        assert time.monotonic() - began < SOON
        for mirror in mirrors:
            assert requests(mirror) < 100


@pytest.mark.parametrize("mode", ["open", "upstream"])
def test_nobody_in_a_circle_waits_for_the_answer_that_waits_for_him(tmp_path: Path, ask: Ask, mode: str) -> None:
    """The second's question meets the first's own, which is under way, and must not wait for what comes of that."""
    gate = Gate()
    with (
        circle(tmp_path, PATIENT | {"auth": {"mode": mode}}, gate) as (first, second),
        ThreadPoolExecutor(2) as clients,
    ):
        answers = [clients.submit(ask, first.metadata_url)]
        eventually(lambda: gate.held >= 1, what="the first's question")
        answers.append(clients.submit(ask, second.metadata_url))
        eventually(lambda: gate.held >= 2, what="the first's passing on of the second's question")
        gate.open()
        began = time.monotonic()
        for answer in answers:
            assert "set upstream.url" in loop_message(answer.result())
        assert time.monotonic() - began < SOON


@pytest.mark.parametrize("mode", ["open", "upstream"])
def test_what_is_stored_is_served_stale_in_a_circle_too(
    tmp_path: Path, simulator: Simulator, ask: Ask, mode: str
) -> None:
    """A loop is one way of upstream's being away."""
    sections = {"auth": {"mode": mode}, "upstream": {"metadata_ttl": "0s"}}
    with ForkedMirror(tmp_path / "mirror", simulator.api_url, sections) as mirror:
        assert ask(mirror.image_url).status == 200
        mirror.stop()
        with relay(mirror.port) as port:
            text = mirror.config_file.read_text().replace(simulator.api_url, f"http://127.0.0.1:{port}")
            mirror.config_file.write_text(text)
            mirror.start()
            answer = ask(mirror.image_url)
    assert (answer.status, answer.header("Cache-Status")) == (200, "pps-mirror; hit; detail=stale")
    assert answer.body == simulator.read("first")


def test_a_fill_that_comes_back_to_its_mirror_fails_at_once(tmp_path: Path, simulator: Simulator, ask: Ask) -> None:
    """What is current is known from before, and its image is not stored: so it is asked for."""
    sections = {"auth": {"mode": "open"}, "upstream": {"metadata_ttl": "0s"}}
    with ForkedMirror(tmp_path / "mirror", simulator.api_url, sections) as mirror:
        assert ask(mirror.metadata_url).status == 200
        mirror.stop()
        with relay(mirror.port) as port:
            text = mirror.config_file.read_text().replace(simulator.api_url, f"http://127.0.0.1:{port}")
            mirror.config_file.write_text(text)
            mirror.start()
            began = time.monotonic()
            assert "set upstream.url" in loop_message(ask(mirror.image_url))
            assert time.monotonic() - began < SOON


def test_a_mirror_behind_mirrors_is_no_loop(
    tmp_path: Path, simulator: Simulator, fresh_mirror: FreshMirror, ask: Ask
) -> None:
    near = fresh_mirror()
    with ForkedMirror(tmp_path / "middle", near.url) as middle, ForkedMirror(tmp_path / "far", middle.url) as far:
        assert ask(far.image_url).body == simulator.read("first")
        assert ask(far.url + VERSION).status == 200
    assert simulator.counters().image_requests == 1
    (asked,) = simulator.log("image")
    assert len((asked.cdn_loop or "").split(", ")) == 3


def test_the_name_goes_to_no_redirect_target_and_changes_at_each_start(
    simulator: Simulator, fresh_mirror: FreshMirror, ask: Ask
) -> None:
    mirror = fresh_mirror()
    assert ask(mirror.image_url).status == 200
    mirror.stop()
    mirror.start()
    assert ask(mirror.metadata_url).status == 200
    assert {each.cdn_loop for each in simulator.log("store")} == {None}
    assert len({each.cdn_loop for each in simulator.log("metadata")}) == 2


@pytest.mark.parametrize(
    ("sent", "status"), [("cloudflare; loops=1", 200), ("pps-mirror-0123456789abcdef", 200), ("x" * 5000, 400)]
)
def test_who_forges_the_header_gains_nothing(
    simulator: Simulator, fresh_mirror: FreshMirror, ask: Ask, sent: str, status: int
) -> None:
    mirror = fresh_mirror()
    assert ask(mirror.url + VERSION).status == 200
    own = simulator.log("version")[0].cdn_loop or ""
    assert ask(mirror.metadata_url, CDN_Loop=sent).status == status
    assert ask(mirror.metadata_url, CDN_Loop=f"{sent}, {own};a=b").status == max(status, 508 if status == 200 else 0)
    assert ask(mirror.metadata_url).status == 200
    assert f"{sent}, {own}" in {each.cdn_loop for each in simulator.log()} or status == 400
