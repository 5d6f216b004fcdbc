"""The admin listener: how the mirror is, as JSON and pushed; what an operator may do, and who else may not."""

import base64
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from mirror.admin.worker_report import INTERVAL
from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.admin import CHANGING, actions_of, ask_admin, pushed, status_of
from tests.support.downloads import Download, at_once, fetch
from tests.support.fixtures import Canary, FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.processes import MirrorProcess, eventually

MIB = 1 << 20
ADMIN_TOKEN = "the-token-of-the-operators"


def fill(mirror: MirrorProcess) -> None:
    with Download(mirror.image_url) as download:
        download.read_all()


@pytest.fixture
def slow(simulator: Simulator) -> Iterator[Simulator]:
    """Upstream over a thin line: the image of 5 MiB takes some seconds."""
    simulator.set_rate(0.5 * MIB)
    yield simulator
    simulator.set_rate(None)


def test_the_status_tells_of_a_running_fill_as_it_moves(slow: Simulator, fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror()
    with pushed(mirror) as statuses, Download(mirror.image_url):
        seen: dict[int, float] = {}
        for status in statuses:
            for running in status["fills"]:
                assert running["hash"] == slow.image_sha256("first")
                assert running["size"] == 5 * MIB
                assert running["clients"] == 1
                seen[running["position"]] = running["rate"]
            if len(seen) >= 3:
                break
        assert list(seen) == sorted(seen)
        assert max(seen.values()) == pytest.approx(0.5 * MIB, rel=0.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_status_counts_what_was_served_and_what_upstream_was_spared(
    simulator: Simulator, fresh_mirror: FreshMirror, workers: int
) -> None:
    mirror = fresh_mirror({"server": {"workers": workers}})
    for _ in range(3):
        fill(mirror)
    eventually(lambda: status_of(mirror)["today"]["served"] == 15 * MIB, what="the count of what was served")
    status = status_of(mirror)
    assert status["today"] == {
        "served": 15 * MIB,
        "fetched": 5 * MIB,
        "saved": 10 * MIB,
        "downloads": 3,
        "hits": 2,
        "hitRate": pytest.approx(2 / 3),
    }
    assert status["current"]["hash"] == simulator.image_sha256("first")
    assert status["current"]["stored"]
    assert [image["current"] for image in status["images"]] == [True]
    assert status["upstream"]["reachable"]
    latest = status["history"][-2:]  # the last interval may just have begun
    assert sum(interval["traffic"]["served"] for interval in latest) == 15 * MIB
    assert len(status["history"]) == 144
    assert {"mirror.started", "image.current", "fill.began", "fill.published"} <= set(actions_of(mirror))


def test_a_restart_does_not_forget_what_was_served_today(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror()
    fill(mirror)
    mirror.stop()
    mirror.start()
    assert status_of(mirror)["today"]["served"] == 5 * MIB


def test_the_status_says_since_when_upstream_is_away_and_why(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"upstream": {"metadata_ttl": "0s"}})
    fill(mirror)
    since = status_of(mirror)["upstream"]["since"]
    simulator.fault(Fault("metadata", times=None, status=503))
    with Download(mirror.image_url) as download:
        assert download.read_all().header("Cache-Status") == "pps-mirror; hit; detail=stale"
    eventually(lambda: status_of(mirror)["upstream"]["reachable"] is False, what="upstream is away")
    upstream = status_of(mirror)["upstream"]
    assert upstream["reason"] == "upstream answered 503"
    assert upstream["since"] >= since
    assert upstream["heardAt"] is not None
    simulator.clear_faults()
    fill(mirror)
    eventually(lambda: status_of(mirror)["upstream"]["reachable"], what="upstream is back")
    assert actions_of(mirror)[-2:] == ["upstream.away", "upstream.back"]


def test_the_status_says_that_upstream_is_asked_too_often(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"upstream": {"metadata_ttl": "0s"}})
    fill(mirror)
    simulator.fault(Fault("metadata", times=None, status=429))
    fill(mirror)
    eventually(lambda: "429" in (status_of(mirror)["upstream"]["reason"] or ""), what="the reason")
    assert status_of(mirror)["upstream"]["reachable"]
    assert "429, too many requests" in ask_admin(mirror, "GET", "/").body.decode()
    simulator.clear_faults()
    fill(mirror)
    eventually(lambda: status_of(mirror)["upstream"]["reason"] is None, what="the end of it")


def test_an_operator_pins_verifies_and_removes_images(simulator: Simulator, fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"upstream": {"metadata_ttl": "0s"}})
    fill(mirror)
    simulator.roll_over("second")
    fill(mirror)
    image = f"/api/images/{simulator.image_sha256('first')}"

    def stored() -> dict[str, bool]:
        return {each["hash"]: each["pinned"] for each in status_of(mirror)["images"]}

    assert ask_admin(mirror, "POST", f"{image}/pin", CHANGING).status == 200
    assert stored()[simulator.image_sha256("first")]
    refused = ask_admin(mirror, "DELETE", image, CHANGING)
    assert refused.status == 409
    assert "is pinned" in refused.json["message"]
    assert ask_admin(mirror, "POST", f"{image}/unpin", CHANGING).status == 200
    assert ask_admin(mirror, "POST", f"{image}/verify", CHANGING).status == 200
    eventually(lambda: "image.verified" in actions_of(mirror), what="the verification")
    assert ask_admin(mirror, "DELETE", image, CHANGING).status == 200
    assert list(stored()) == [simulator.image_sha256("second")]
    assert not (mirror.store / "images" / simulator.image_sha256("first")).exists()
    current = ask_admin(mirror, "DELETE", "/api/images/current", CHANGING)
    assert (current.status, "is current" in current.json["message"]) == (409, True)
    assert ask_admin(mirror, "DELETE", "/api/images/current?force=true", CHANGING).status == 200
    assert ask_admin(mirror, "POST", "/api/images/nonsense/pin", CHANGING).status == 400
    assert ask_admin(mirror, "POST", "/api/images/0123456789/pin", CHANGING).status == 404


FORGED = {
    "a form of another page": {"Content-Type": "application/x-www-form-urlencoded", "Origin": "http://evil.example"},
    "text": {"Content-Type": "text/plain"},
    "another page that we would have had to allow": {**CHANGING, "Origin": "http://evil.example"},
    "another site, as the browser says": {**CHANGING, "Sec-Fetch-Site": "cross-site"},
    "a name that was made to point here": {**CHANGING, "Host": "evil.example"},
    "a page of that name": {**CHANGING, "Host": "evil.example:8081", "Origin": "http://evil.example:8081"},
    "no host": {**CHANGING, "Host": ""},
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED.keys())
def test_no_web_page_can_change_anything(fresh_mirror: FreshMirror, headers: dict[str, str]) -> None:
    mirror = fresh_mirror()
    fill(mirror)
    [image] = status_of(mirror)["images"]
    for method, path in (("POST", f"/api/images/{image['hash']}/pin"), ("DELETE", "/api/images/current?force=true")):
        answer = ask_admin(mirror, method, path, headers)
        assert answer.status == 403
        assert answer.headers.get("Access-Control-Allow-Origin") is None
    assert ask_admin(mirror, "OPTIONS", "/api/prefetch", headers).status == 405
    assert not status_of(mirror)["images"][0]["pinned"]


def test_no_name_that_was_made_to_point_here_can_read(mirror: MirrorProcess) -> None:
    for path in ("/", "/api/status", "/api/events"):
        assert ask_admin(mirror, "GET", path, {"Host": "evil.example"}).status == 403
        for host in ("localhost:8081", "127.0.0.1", "[::1]:8081", "192.0.2.7:80"):
            assert ask_admin(mirror, "HEAD", path, {"Host": host}).status == 200
    assert ask_admin(mirror, "GET", "/healthz", {"Host": "pod-7.example"}).status == 200


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


def test_changing_takes_the_admin_token_when_there_is_one(
    fresh_mirror: FreshMirror, tmp_path: Path, canary: Canary
) -> None:
    token_file = tmp_path / "admin-token"
    token_file.write_text(ADMIN_TOKEN + "\n")
    token_file.chmod(0o600)
    canary.hide(ADMIN_TOKEN)
    mirror = fresh_mirror({"admin": {"token_file": str(token_file)}})
    fill(mirror)
    assert status_of(mirror)["needsToken"]
    pin = "/api/images/current/pin"
    assert ask_admin(mirror, "POST", pin, {"Authorization": f"Bearer {ADMIN_TOKEN}"}).status == 403
    for wrong in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": basic("wrong")},
        {"Authorization": "Basic ?"},
    ):
        refused = ask_admin(mirror, "POST", pin, CHANGING | wrong)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    for right in (f"Bearer {ADMIN_TOKEN}", basic(ADMIN_TOKEN)):
        assert ask_admin(mirror, "POST", pin, CHANGING | {"Authorization": right}).status == 200
    token_file.write_text("another-token-of-the-operators")
    mirror.send_signal(1)
    eventually(lambda: "mirror.reloaded" in mirror.actions(), what="the reload")
    assert ask_admin(mirror, "POST", pin, CHANGING | {"Authorization": f"Bearer {ADMIN_TOKEN}"}).status == 401


def test_beyond_this_machine_looking_takes_the_token_too(
    fresh_mirror: FreshMirror, tmp_path: Path, canary: Canary
) -> None:
    token_file = tmp_path / "admin-token"
    token_file.write_text(ADMIN_TOKEN)
    token_file.chmod(0o600)
    canary.hide(ADMIN_TOKEN)
    mirror = fresh_mirror({"admin": {"host": "0.0.0.0", "token_file": str(token_file)}})
    for path in ("/", "/api/status", "/api/events"):
        refused = ask_admin(mirror, "GET", path)
        assert refused.status == 401
        assert any("Basic" in value for value in refused.headers.get_all("WWW-Authenticate", ()))
        for right in (f"Bearer {ADMIN_TOKEN}", basic(ADMIN_TOKEN)):
            assert ask_admin(mirror, "HEAD", path, {"Authorization": right}).status == 200
    for path in ("/healthz", "/readyz", "/metrics"):
        assert ask_admin(mirror, "GET", path).status == 200


def test_the_page_may_load_nothing_from_elsewhere_and_be_shown_nowhere_else(mirror: MirrorProcess) -> None:
    policy = ask_admin(mirror, "GET", "/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_other_routes_and_methods_are_refused_in_words(mirror: MirrorProcess) -> None:
    assert ask_admin(mirror, "GET", "/nothing").status == 404
    for path, allowed in (("/api/status", "GET, HEAD"), ("/api/prefetch", "POST"), ("/api/images/current", "DELETE")):
        answer = ask_admin(mirror, "PUT", path, CHANGING)
        assert (answer.status, answer.headers["Allow"]) == (405, allowed)
        assert "message" in answer.json


def test_an_air_gapped_mirror_has_a_status_too(tmp_path: Path) -> None:
    with Simulator.start([ImageSpec("first", size=MIB)]):
        with ForkedMirror(tmp_path, "", {"auth": {"mode": "open"}}) as mirror:
            status = status_of(mirror)
            assert (status["current"], status["upstream"]["url"], status["upstream"]["reachable"]) == (None, None, None)
            assert ask_admin(mirror, "POST", "/api/prefetch", CHANGING).status == 404


def test_what_all_workers_say_is_one_event(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror({"server": {"workers": 2}})

    def said() -> int:
        at_once(8, partial(fetch, mirror.metadata_url))  # workers take turns when all are asked at once
        return mirror.log().count("current image is")

    eventually(lambda: said() == 2, what="both workers saying what is current")
    fill(mirror)
    eventually(lambda: "image.current" in actions_of(mirror), what="the event")
    time.sleep(2 * INTERVAL)
    assert actions_of(mirror).count("image.current") == 1


def test_more_who_watch_than_there_is_room_for_are_told_to_look_elsewhere(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror()
    with ExitStack() as watching:
        for _ in range(32):
            next(watching.enter_context(pushed(mirror)))
        refused = ask_admin(mirror, "GET", "/api/events")
        assert (refused.status, "/api/status" in refused.json["message"]) == (503, True)
        assert ask_admin(mirror, "GET", "/api/status").status == 200

    def has_room() -> bool:
        with suppress(AssertionError), pushed(mirror) as statuses:
            return bool(next(statuses))
        return False

    eventually(has_room, what="room again")
