"""Mode tokens: the site's own list says who may read, and upstream never sees a token that is on it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, Simulator, fingerprint
from tests.support.downloads import Download
from tests.support.fixtures import Ask, Canary, FreshMirror
from tests.support.forked import ForkedMirror
from tests.support.processes import METADATA, MirrorProcess
from tests.support.tokens import write_tokens

OTHER = "another-good-token"
LOCAL = "a-token-of-this-site"
SECOND = "one-more-token-of-this-site"

Sections = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def hidden(canary: Canary) -> None:
    canary.hide(LOCAL, SECOND)


@pytest.fixture
def sections(tmp_path: Path) -> Sections:
    """A mirror that lets two tokens in, asks upstream each time, and has no token of its own."""
    file = write_tokens(tmp_path / "tokens", ci=LOCAL, ops=SECOND)
    return {"auth": {"mode": "tokens", "tokens_file": str(file)}, "upstream": {"metadata_ttl": "0s"}}


@pytest.fixture
def own_token(tmp_path: Path, sections: Sections) -> Path:
    """The file of the mirror's own token, which is in the configuration from now on."""
    path = tmp_path / "own-token"
    path.write_text(OTHER)
    path.chmod(0o600)
    sections["upstream"]["token_file"] = str(path)
    return path


def doors(mirror: MirrorProcess, image_hash: str) -> list[str]:
    """Every way to what is stored, and to upstream."""
    return [*mirror.doors(image_hash), f"{mirror.url}/api/v2/version/"]


def credentials(simulator: Simulator) -> set[str | None]:
    """What upstream was shown so far, at any route."""
    return {asked.authorization for asked in simulator.log()}


def test_who_has_a_token_of_the_list_is_served_and_upstream_sees_the_mirrors_own_only(
    fresh_mirror: FreshMirror, sections: Sections, own_token: Path, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror(sections)
    assert ask(mirror.image_url, LOCAL).body == simulator.read("first")
    for method in ("GET", "HEAD"):
        for url in doors(mirror, simulator.image_sha256("first")):
            for token in (LOCAL, SECOND):
                assert ask(url, token, method).status == 200
    at_the_origin = [asked for asked in simulator.log() if asked.listener == "api"]
    assert {asked.place for asked in at_the_origin} == {"version", "metadata", "image"}
    assert {asked.authorization for asked in at_the_origin} == {fingerprint(f"Bearer {OTHER}")}


@pytest.mark.parametrize("scheme", ["Bearer", "Token", "bearer", "TOKEN"])
def test_both_schemes_of_the_official_client_are_alike(
    fresh_mirror: FreshMirror, sections: Sections, own_token: Path, scheme: str
) -> None:
    mirror = fresh_mirror(sections)
    with Download(mirror.metadata_url, headers={"Authorization": f"{scheme} {LOCAL}"}) as answer:
        assert answer.read_all().status == 200


def refused(mirror: MirrorProcess) -> list[dict[str, str]]:
    """Headers that let nobody in, although upstream would take some of their tokens."""
    return [
        {},
        *({"Authorization": f"Bearer {token}"} for token in (TOKEN, OTHER, LOCAL[:-1], LOCAL + "x", "")),
        {"Authorization": f"Basic {LOCAL}"},
        {"Authorization": LOCAL},
        {"Authorization": f"Bearer ci:{LOCAL}"},
    ]


def test_everybody_else_gets_a_401_that_says_what_to_do_at_every_door_and_upstream_hears_nothing(
    fresh_mirror: FreshMirror, sections: Sections, own_token: Path, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror(sections)
    assert ask(mirror.image_url, LOCAL).status == 200
    simulator.reset_log()
    for headers in refused(mirror):
        for url in doors(mirror, simulator.image_sha256("first")):
            with Download(url, headers=headers) as answer:
                answer.read_all()
            assert (answer.status, answer.header("WWW-Authenticate")) == (401, "Bearer")
            assert answer.header("Content-Type") == "application/json"
            assert "whoever runs" in json.loads(answer.body)["message"]
            assert answer.header("ETag") == ""
    assert simulator.log() == []


def test_a_mirror_without_a_token_of_its_own_shows_upstream_none(
    fresh_mirror: FreshMirror, sections: Sections, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror(sections)
    upstreams = ask(simulator.api_url + METADATA, None)
    simulator.reset_log()
    for url in (mirror.image_url, mirror.metadata_url):
        answer = ask(url, LOCAL)
        assert (answer.status, answer.body) == (401, upstreams.body)
    assert (
        ask(f"{mirror.url}/api/v2/version/", LOCAL).status == ask(f"{simulator.api_url}/api/v2/version/", None).status
    )
    assert credentials(simulator) == {None}


def test_when_upstream_refuses_the_mirrors_own_token_midway_no_clients_is_tried_instead(
    fresh_mirror: FreshMirror, sections: Sections, own_token: Path, simulator: Simulator
) -> None:
    mirror = fresh_mirror(sections)
    simulator.fault(Fault("store", hang_after=1_000_000, cut_after=1_000_000))
    with (
        Download(mirror.image_url, headers={"Authorization": f"Bearer {LOCAL}"}) as first,
        Download(mirror.image_url, headers={"Authorization": f"Token {SECOND}"}) as second,
    ):
        simulator.wait_held()
        simulator.set_tokens([TOKEN])
        simulator.release()
        assert [download.read_all().ended for download in (first, second)] == ["reset", "reset"]
    used = [(asked.authorization, asked.status) for asked in simulator.log("image")]
    assert used == [(fingerprint(f"Bearer {OTHER}"), 302), (fingerprint(f"Bearer {OTHER}"), 401)]
    assert credentials(simulator) == {fingerprint(f"Bearer {OTHER}"), None}  # None: at the redirect target


def test_upstream_hears_the_id_of_the_request_it_is_asked_for(
    fresh_mirror: FreshMirror, sections: Sections, own_token: Path, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror(sections)
    assert ask(mirror.image_url, LOCAL, X_Request_ID="the-clients-own").status == 200
    at_the_origin = {(asked.place, asked.request_id) for asked in simulator.log() if asked.listener == "api"}
    assert at_the_origin == {("metadata", "the-clients-own"), ("image", "the-clients-own")}


def test_while_upstream_is_away_who_has_a_token_is_served(
    fresh_mirror: FreshMirror, sections: Sections, own_token: Path, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror(sections)
    assert ask(mirror.image_url, LOCAL).status == 200
    for place in ("version", "metadata", "image"):
        simulator.fault(Fault(place, drop=True, times=None))
    assert ask(mirror.image_url, SECOND).header("Cache-Status") == "pps-mirror; hit; detail=stale"
    assert ask(mirror.image_url, "a-token-that-is-none").status == 401


def test_without_upstream_the_list_still_says_who_may_read(
    fresh_mirror: FreshMirror, sections: Sections, own_token: Path, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror(sections)
    assert ask(mirror.image_url, LOCAL).status == 200
    mirror.stop()
    text = mirror.config_file.read_text()
    mirror.config_file.write_text(text.replace(f'url = "{simulator.api_url}"', 'url = ""'))
    mirror.start()
    assert ask(mirror.image_url, LOCAL).body == simulator.read("first")
    assert ask(mirror.image_url, None).status == 401


def test_the_log_names_who_came_by_the_name_in_the_list(
    fresh_mirror: FreshMirror, sections: Sections, own_token: Path, ask: Ask
) -> None:
    mirror = fresh_mirror(sections)
    assert ask(mirror.metadata_url, SECOND, X_Request_ID="number-7").status == 200
    assert "request number-7: let in as ops" in mirror.settled.log()


def test_a_bad_list_stops_the_start_and_fails_check_with_a_line_that_names_file_and_line(
    tmp_path: Path, sections: Sections, simulator: Simulator
) -> None:
    file = Path(sections["auth"]["tokens_file"])
    file.write_text(f"{file.read_text()}ci:{LOCAL}\n")
    mirror = ForkedMirror(tmp_path, simulator.api_url, sections)
    for command, status in (("serve", 2), ("check", 1)):
        done = subprocess.run(
            [sys.executable, "-m", "mirror.cli.main", command, "-c", str(mirror.config_file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status
        said = [line for line in (done.stderr + done.stdout).splitlines() if "tokens_file" in line]
        assert len(said) == 1
        assert f"auth.tokens_file = '{file}', line 3: expected" in said[0]
        assert LOCAL not in done.stdout + done.stderr
