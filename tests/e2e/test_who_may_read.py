"""Guarantee 7: cached bytes go to those only whom upstream, or the local policy, lets in."""

import hashlib
import json
import time
from pathlib import Path

import pytest

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator, fingerprint
from tests.support.downloads import Download
from tests.support.fixtures import SIZE, Ask, FreshMirror
from tests.support.processes import METADATA, MirrorProcess, eventually

OTHER = "another-good-token"
FORBIDDEN = "a-forbidden-token"
BAD = "a-token-that-is-none"

ALWAYS_ASK = {"auth": {"ttl": "0s"}, "upstream": {"metadata_ttl": "0s"}}


@pytest.fixture
def image_hash(simulator: Simulator) -> str:
    return simulator.image_sha256("first")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), (BAD, 401), (FORBIDDEN, 403)], ids=["no token", "a bad one", "a forbidden one"]
)
def test_upstreams_own_refusal_passes_through_at_every_door_though_the_image_is_stored(
    mirror: MirrorProcess, simulator: Simulator, image_hash: str, ask: Ask, token: str | None, status: int, method: str
) -> None:
    upstreams = ask(simulator.api_url + METADATA, token)
    assert upstreams.status == status
    for url in mirror.doors(image_hash):
        answer = ask(url, token, method)
        assert answer.status == status
        assert answer.body == (upstreams.body if method == "GET" else b"")
        assert answer.header("Content-Type") == upstreams.header("Content-Type") == "application/json"
        assert answer.header("ETag") == ""


def test_a_refusal_comes_with_upstreams_challenge_and_body_as_they_are(
    mirror: MirrorProcess, simulator: Simulator, image_hash: str, ask: Ask
) -> None:
    challenge = 'Bearer realm="DataRobot", error="invalid_token"'
    body = '{"message" :  "It has expired.", "errorName": "TOKEN_EXPIRED"}'
    headers = {"WWW-Authenticate": challenge, "Content-Type": "application/problem+json"}
    simulator.fault(Fault("metadata", status=401, body=body, headers=headers, times=None))
    for url in mirror.doors(image_hash):
        answer = ask(url, "an-expired-token")
        assert (answer.status, answer.body) == (401, body.encode())
        assert answer.header("WWW-Authenticate") == challenge
        assert answer.header("Content-Type") == "application/problem+json"


def test_a_refused_caller_begins_no_fill(fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask) -> None:
    mirror = fresh_mirror()
    for token, status in ((None, 401), (BAD, 401), (FORBIDDEN, 403)):
        assert ask(mirror.image_url, token).status == status
    assert simulator.counters().image_requests == 0
    assert {asked.authorization for asked in simulator.log("metadata")} == {
        None,
        fingerprint(f"Bearer {BAD}"),
        fingerprint(f"Bearer {FORBIDDEN}"),
    }


def test_a_decision_is_remembered_for_each_caller(
    fresh_mirror: FreshMirror, simulator: Simulator, image_hash: str, ask: Ask
) -> None:
    mirror = fresh_mirror({"auth": {"ttl": "1h"}, "upstream": {"metadata_ttl": "1h"}})
    for callers, token in enumerate((TOKEN, OTHER), 1):
        for url in mirror.doors(image_hash) * 2:
            assert ask(url, token).status == 200
        assert simulator.counters().metadata_requests == callers


def test_with_a_ttl_of_0_upstream_is_asked_each_time(
    fresh_mirror: FreshMirror, simulator: Simulator, image_hash: str, ask: Ask
) -> None:
    mirror = fresh_mirror(ALWAYS_ASK)
    ask(mirror.image_url)
    simulator.reset_log()
    for count, url in enumerate(mirror.doors(image_hash), 1):
        assert ask(url).status == 200
        assert simulator.counters().metadata_requests == count


def test_a_revoked_token_is_refused_when_auth_ttl_is_over(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror({"auth": {"ttl": "4s"}, "upstream": {"metadata_ttl": "1h"}})
    began = time.monotonic()
    assert ask(mirror.image_url).status == 200
    simulator.set_tokens([])
    assert ask(mirror.image_url).status == 200
    assert simulator.counters().metadata_requests == 1
    eventually(lambda: ask(mirror.image_url).status == 401)
    assert time.monotonic() - began >= 4


def test_what_is_remembered_on_disk_is_private_and_holds_neither_a_token_nor_its_plain_hash(
    fresh_mirror: FreshMirror, ask: Ask
) -> None:
    mirror = fresh_mirror()
    assert ask(mirror.metadata_url).status == 200
    assert ask(mirror.metadata_url, BAD).status == 401
    path = mirror.store / "access.json"
    eventually(path.exists, what="access.json")
    assert path.stat().st_mode & 0o777 == 0o600
    noted = path.read_text().lower()
    assert json.loads(noted)
    for token in (TOKEN, BAD):
        for value in (token, f"Bearer {token}"):
            assert value.lower() not in noted
            assert hashlib.sha256(value.encode()).hexdigest() not in noted


@pytest.fixture
def lonely_mirror(fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask) -> MirrorProcess:
    """A mirror whose upstream let TOKEN in and refused FORBIDDEN, was not asked by OTHER, and went away."""
    mirror = fresh_mirror(ALWAYS_ASK)
    assert ask(mirror.image_url).body == simulator.read("first")
    eventually((mirror.store / "access.json").exists, what="access.json")
    assert ask(mirror.image_url, FORBIDDEN).status == 403
    go_away(simulator)
    return mirror


def test_while_upstream_is_away_a_caller_it_let_in_is_served(
    lonely_mirror: MirrorProcess, simulator: Simulator, image_hash: str, ask: Ask
) -> None:
    assert_served(lonely_mirror, simulator, image_hash, ask)


def test_while_upstream_is_away_a_caller_it_let_in_is_served_after_a_crash_of_the_mirror(
    lonely_mirror: MirrorProcess, simulator: Simulator, image_hash: str, ask: Ask
) -> None:
    lonely_mirror.kill()
    lonely_mirror.start()
    assert_served(lonely_mirror, simulator, image_hash, ask)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "after a restart"])
def test_while_upstream_is_away_an_unknown_caller_gets_503_with_retry_after(
    lonely_mirror: MirrorProcess, image_hash: str, ask: Ask, restarted: bool
) -> None:
    if restarted:
        lonely_mirror.stop()
        lonely_mirror.start()
    for token in (OTHER, None):
        for url in lonely_mirror.doors(image_hash):
            answer = ask(url, token)
            assert (answer.status, answer.header("Content-Type")) == (503, "application/json")
            assert int(answer.header("Retry-After")) > 0
            assert "upstream cannot be reached" in json.loads(answer.body)["message"]


def test_while_upstream_is_away_a_refused_caller_stays_refused(
    lonely_mirror: MirrorProcess, image_hash: str, ask: Ask
) -> None:
    assert ask(lonely_mirror.image_url, FORBIDDEN).status == 403
    for url in lonely_mirror.doors(image_hash):
        assert ask(url, FORBIDDEN).status in {403, 503}  # once the refusal is forgotten, it is an unknown caller
    lonely_mirror.kill()
    lonely_mirror.start()
    for url in lonely_mirror.doors(image_hash):
        assert ask(url, FORBIDDEN).status == 503


def test_a_caller_that_was_let_in_and_then_refused_is_not_served_while_upstream_is_away(
    fresh_mirror: FreshMirror, simulator: Simulator, image_hash: str, ask: Ask
) -> None:
    mirror = fresh_mirror(ALWAYS_ASK)
    assert ask(mirror.image_url).status == 200
    eventually((mirror.store / "access.json").exists, what="access.json")
    simulator.set_tokens([])
    assert ask(mirror.image_url).status == 401
    go_away(simulator)
    for url in mirror.doors(image_hash):
        assert ask(url).status in {401, 503}
    mirror.stop()
    mirror.start()
    for url in mirror.doors(image_hash):
        assert ask(url).status == 503


def test_a_caller_is_served_no_longer_than_stale_if_error(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror({"auth": {"ttl": "0s"}, "upstream": {"metadata_ttl": "0s", "stale_if_error": "4s"}})
    began = time.monotonic()
    assert ask(mirror.image_url).status == 200
    go_away(simulator)
    assert ask(mirror.image_url).status == 200
    eventually(lambda: ask(mirror.image_url).status == 503)
    assert time.monotonic() - began >= 4


def test_it_is_the_callers_own_decision_that_grows_stale(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror({"auth": {"ttl": "0s"}, "upstream": {"metadata_ttl": "0s", "stale_if_error": "3s"}})
    assert ask(mirror.image_url, TOKEN).status == 200
    began = time.monotonic()  # no earlier than the decision about it
    eventually(lambda: ask(mirror.metadata_url, OTHER).status == 200 and time.monotonic() - began > 3)
    go_away(simulator)
    assert ask(mirror.image_url, OTHER).status == 200
    assert ask(mirror.image_url, TOKEN).status == 503


def test_an_upstream_that_is_gone_altogether_is_away_too(fresh_mirror: FreshMirror, ask: Ask) -> None:
    with Simulator.start([ImageSpec("first", size=SIZE)]) as gone:
        mirror = fresh_mirror(ALWAYS_ASK, upstream=gone)
        assert ask(mirror.image_url).status == 200
    assert ask(mirror.image_url, OTHER).status == 503
    assert_served(mirror, gone, gone.image_sha256("first"), ask)


def go_away(simulator: Simulator) -> None:
    """Let upstream answer nobody."""
    for place in ("version", "metadata", "image"):
        simulator.fault(Fault(place, drop=True, times=None))


def assert_served(mirror: MirrorProcess, simulator: Simulator, image_hash: str, ask: Ask) -> None:
    for url in mirror.doors(image_hash):
        assert ask(url).status == 200
    stale = ask(mirror.image_url)
    assert (stale.body, stale.header("Cache-Status")) == (simulator.read("first"), "pps-mirror; hit; detail=stale")
    stale = ask(mirror.metadata_url)
    assert stale.body == simulator.metadata_body("first")
    assert stale.header("Cache-Status") == "pps-mirror; hit; detail=stale"


@pytest.mark.parametrize("source", ["upstream.token_file", "DATAROBOT_API_TOKEN"])
def test_mode_open_needs_no_token_and_uses_the_mirrors_own_toward_upstream(
    tmp_path: Path, fresh_mirror: FreshMirror, simulator: Simulator, image_hash: str, ask: Ask, source: str
) -> None:
    sections = {"auth": {"mode": "open"}, "upstream": {"metadata_ttl": "0s"}}
    if source == "DATAROBOT_API_TOKEN":
        mirror = fresh_mirror(sections, environ={source: OTHER})
    else:
        mirror = fresh_mirror(with_token(tmp_path, OTHER, sections))
    for token in (None, BAD, FORBIDDEN):
        for url in mirror.doors(image_hash):
            assert ask(url, token).status == 200
        assert ask(mirror.image_url, token).body == simulator.read("first")
        assert ask(f"{mirror.url}/api/v2/version/", token).status == 200
    at_the_origin = [asked for asked in simulator.log() if asked.listener == "api"]
    assert {asked.place for asked in at_the_origin} == {"version", "metadata", "image"}
    assert {asked.authorization for asked in at_the_origin} == {fingerprint(f"Bearer {OTHER}")}


def test_mode_open_serves_everybody_while_upstream_is_away(
    tmp_path: Path, fresh_mirror: FreshMirror, simulator: Simulator, image_hash: str, ask: Ask
) -> None:
    sections = {"auth": {"mode": "open"}, "upstream": {"metadata_ttl": "0s"}}
    mirror = fresh_mirror(with_token(tmp_path, OTHER, sections))
    assert ask(mirror.image_url, None).status == 200
    go_away(simulator)
    for url in mirror.doors(image_hash):
        assert ask(url, None).status == 200
    assert ask(mirror.image_url, None).header("Cache-Status") == "pps-mirror; hit; detail=stale"


def test_mode_open_without_a_token_of_its_own_passes_upstreams_refusal_on(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror({"auth": {"mode": "open"}})
    upstreams = ask(simulator.api_url + METADATA, None)
    for url in (mirror.metadata_url, mirror.image_url):
        answer = ask(url, None)
        assert (answer.status, answer.body) == (401, upstreams.body)


def test_in_mode_upstream_the_mirrors_own_token_fetches_the_image_and_lets_nobody_in(
    tmp_path: Path, fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror(with_token(tmp_path, OTHER, {}))
    assert ask(mirror.image_url, BAD).status == 401
    assert ask(mirror.image_url, None).status == 401
    assert simulator.counters().image_requests == 0
    simulator.reset_log()
    assert ask(mirror.image_url, TOKEN).body == simulator.read("first")
    assert [asked.authorization for asked in simulator.log("metadata")] == [fingerprint(f"Bearer {TOKEN}")]
    assert [asked.authorization for asked in simulator.log("image")] == [fingerprint(f"Bearer {OTHER}")]


def test_a_fill_whose_token_is_revoked_goes_on_with_that_of_another_waiting_client(
    fresh_mirror: FreshMirror, simulator: Simulator
) -> None:
    mirror = fresh_mirror()
    simulator.fault(Fault("store", hang_after=1_000_000, cut_after=1_000_000))
    with (
        Download(mirror.image_url, headers={"Authorization": f"Bearer {TOKEN}"}) as first,
        Download(mirror.image_url, headers={"Authorization": f"Bearer {OTHER}"}) as second,
    ):
        simulator.wait_held()
        simulator.set_tokens([OTHER])
        simulator.release()
        for download in (first, second):
            assert download.read_all().ended == "complete"
            assert download.body == simulator.read("first")
    used = [(asked.authorization, asked.status) for asked in simulator.log("image")]
    mine, others = fingerprint(f"Bearer {TOKEN}"), fingerprint(f"Bearer {OTHER}")
    assert used == [(mine, 302), (mine, 401), (others, 302)]


def with_token(directory: Path, token: str, sections: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Add a file with the mirror's own token to a configuration."""
    path = directory / "token"
    path.write_text(f"{token}\n")
    path.chmod(0o600)
    return sections | {"upstream": sections.get("upstream", {}) | {"token_file": str(path)}}
