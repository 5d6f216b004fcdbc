"""SIGHUP takes up what the configuration says now, as a whole or not at all; what takes a restart is named."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Simulator
from tests.support.admin import CHANGING, ask_admin, status_of
from tests.support.fixtures import Ask, FreshMirror
from tests.support.processes import METADATA, MirrorProcess, eventually, free_port

pytestmark = pytest.mark.real_command

OTHER = "another-good-token"
BOTH = pytest.mark.parametrize("workers", [1, 2], ids=["one process", "workers"])


def rewrite(mirror: MirrorProcess, *lines: str) -> None:
    """Write other lines, `section: key = value`, into the configuration, in place of those of the same keys."""
    kept = mirror.config_file.read_text().splitlines()
    for line in lines:
        section, _, setting = line.partition(": ")
        key = setting.partition(" = ")[0]
        if f"[{section}]" not in kept:
            kept.append(f"[{section}]")
        begin = kept.index(f"[{section}]") + 1
        end = next((at for at in range(begin, len(kept)) if kept[at].startswith("[")), len(kept))
        kept[begin:end] = [*(each for each in kept[begin:end] if not each.startswith(f"{key} = ")), setting]
    mirror.config_file.write_text("\n".join(kept) + "\n")


def sections(workers: int, **upstream: Any) -> dict[str, dict[str, Any]]:
    return {
        "server": {"workers": workers},
        "auth": {"ttl": "1h"},
        "upstream": {"metadata_ttl": "1h", **upstream},
    }


@BOTH
def test_how_long_answers_and_decisions_are_fresh(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask, workers: int
) -> None:
    mirror = fresh_mirror(sections(workers))
    for _ in range(8):
        assert [ask(mirror.metadata_url, token).status for token in (TOKEN, OTHER)] == [200, 200]
    simulator.set_tokens([OTHER])
    simulator.roll_over("second")
    if workers == 1:  # else it may be the turn of one that has not asked yet
        assert ask(mirror.metadata_url).status == 200
    rewrite(mirror, 'auth: ttl = "0s"', 'upstream: metadata_ttl = "0s"')
    said = mirror.hang_up(1 if workers == 1 else 3)
    assert said.count("SIGHUP: reloaded upstream.metadata_ttl, auth.ttl\n") == (1 if workers == 1 else 3)
    for _ in range(8):
        assert ask(mirror.metadata_url).status == 401
        assert ask(mirror.metadata_url, OTHER).body == ask(simulator.api_url + METADATA, OTHER).body


@BOTH
def test_where_upstream_may_redirect_what_is_passed_through_and_how_much_is_logged(
    fresh_mirror: FreshMirror, ask: Ask, workers: int
) -> None:
    mirror = fresh_mirror(sections(workers) | {"log": {"format": "console"}})
    other = f"{mirror.url}/api/v2/projects/"
    assert b"there is nothing here" in ask(other).body
    rewrite(
        mirror,
        'upstream: redirect_hosts = ["nowhere.example"]',
        'upstream: passthrough = ["version/", "projects/"]',
        'log: format = "json"',
    )
    mirror.hang_up(1 if workers == 1 else 3)
    for _ in range(4):
        assert b"there is nothing here" not in ask(other).body
        assert "upstream.redirect_hosts" in ask(mirror.image_url).body.decode()
    eventually(lambda: "http.request" in mirror.actions(), what="the line of a request, in JSON")
    rewrite(mirror, "upstream: redirect_hosts = []", f'upstream: proxy = "http://127.0.0.1:{free_port()}"')
    mirror.hang_up(1 if workers == 1 else 3)
    assert "the proxy (upstream.proxy)" in ask(other).body.decode()
    rewrite(mirror, 'upstream: proxy = ""')
    mirror.hang_up(1 if workers == 1 else 3)
    assert ask(mirror.image_url).status == 200
    rewrite(mirror, 'log: level = "error"')
    mirror.send_signal(signal.SIGHUP)

    def is_silent() -> bool:
        before = len(mirror.settled.log())
        for _ in range(8):  # whichever worker answers
            assert ask(mirror.metadata_url).status == 200
        return mirror.settled.log()[before:] == ""

    eventually(is_silent, what="silence")


def test_prefetching_the_room_and_how_long_downloads_have(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask
) -> None:
    mirror = fresh_mirror(sections(1), environ={"DATAROBOT_API_TOKEN": TOKEN})
    rewrite(
        mirror,
        "prefetch: enabled = true",
        'store: max_size = "50MiB"',
        'server: drain = "7s"',
        "server: max_connections = 1",
    )
    mirror.hang_up()
    image = mirror.store / "images" / simulator.image_sha256("first") / "image"
    eventually(image.exists, what="the image that nobody asked for")
    eventually(lambda: status_of(mirror)["rooms"][0]["limit"] == 50 << 20, what="the new limit")
    assert status_of(mirror)["prefetch"]["enabled"]
    assert mirror.stop() == 0
    assert "downloads have 7 s to end" in mirror.settled.events("mirror.stopping")[0]["message"]


def test_the_admin_token(fresh_mirror: FreshMirror, tmp_path: Path) -> None:
    mirror = fresh_mirror()
    assert ask_admin(mirror, "POST", "/api/prefetch", CHANGING).status != 401
    token = tmp_path / "token"
    token.write_text("token-of-an-operator")
    token.chmod(0o600)
    rewrite(mirror, f'admin: token_file = "{token}"')
    assert "SIGHUP: reloaded admin.token_file\n" in mirror.hang_up()
    assert ask_admin(mirror, "POST", "/api/prefetch", CHANGING).status == 401
    bearer = {"Authorization": "Bearer token-of-an-operator"}
    assert ask_admin(mirror, "POST", "/api/prefetch", CHANGING | bearer).status != 401


@BOTH
def test_what_takes_a_restart_is_named_and_the_rest_is_taken_up(
    fresh_mirror: FreshMirror, ask: Ask, tmp_path: Path, workers: int
) -> None:
    mirror = fresh_mirror(sections(workers))
    rewrite(mirror, f"server: port = {free_port()}", f'store: path = "{tmp_path}/elsewhere"', 'auth: ttl = "5s"')
    for _ in range(2):
        said = mirror.hang_up(1 if workers == 1 else 3)
        assert "WARNING SIGHUP: a restart is needed for server.port, store.path; until then what was set" in said
    assert ask(mirror.metadata_url).status == 200
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "wrong",
    ['upstream: metadata_ttl = "soon"', "upstream: metdata_ttl = 1", 'upstream: ca_file = "/nowhere"', "broken"],
)
def test_a_wrong_file_changes_nothing_at_all(
    fresh_mirror: FreshMirror, simulator: Simulator, ask: Ask, wrong: str
) -> None:
    mirror = fresh_mirror(sections(1))
    assert ask(mirror.metadata_url).status == 200
    rewrite(mirror, 'auth: ttl = "0s"', 'log: format = "json"', *([wrong] if ": " in wrong else []))
    if wrong == "broken":
        mirror.config_file.write_text(mirror.config_file.read_text() + "[")
    said = mirror.hang_up()
    assert said.count("\n") == 1
    assert "ERROR SIGHUP: " in said
    assert said.endswith("; nothing has changed\n")
    simulator.set_tokens([])
    assert ask(mirror.metadata_url).status == 200


def limits(mirror: MirrorProcess) -> list[str]:
    return [event["message"].removeprefix("images are fetched ") for event in mirror.events("rate.changed")]


def emptied(mirror: MirrorProcess) -> str:
    mirror.config_file.write_text("")
    return f"{mirror.config_file}: it is empty now; nothing has changed"


def gone(mirror: MirrorProcess) -> str:
    mirror.config_file.unlink()
    return f"{mirror.config_file}: cannot read it: No such file or directory; nothing has changed"


def cut_short(mirror: MirrorProcess) -> str:
    lines = mirror.config_file.read_text().splitlines(keepends=True)
    mirror.config_file.write_text("".join(line for line in lines if "max_rate" not in line))
    return "SIGHUP: not set any more, and as it was all the same: upstream.max_rate; to change it, set it"


@pytest.mark.parametrize("change", [emptied, gone, cut_short])
def test_a_rate_that_was_in_force_is_not_lifted_by_absence(
    fresh_mirror: FreshMirror, ask: Ask, change: Callable[[MirrorProcess], str]
) -> None:
    mirror = fresh_mirror(sections(1, max_rate="50MB/s"))
    assert len(limits(mirror)) == 1
    expected = change(mirror)
    assert expected in mirror.hang_up()
    assert ask(mirror.image_url).status == 200
    assert len(limits(mirror)) == 1


def test_a_configuration_that_came_by_a_pipe_is_not_read_again(tmp_path: Path, simulator: Simulator, ask: Ask) -> None:
    mirror = MirrorProcess(tmp_path / "mirror", simulator.api_url, sections(1, max_rate="50MB/s"))
    reading, writing = os.pipe()  # as `-c <(...)` gives it
    os.write(writing, mirror.config_file.read_bytes())
    os.close(writing)
    mirror.config_file, mirror.passed = Path(f"/dev/fd/{reading}"), [reading]
    with mirror:
        os.close(reading)
        said = mirror.hang_up()
        assert f"/dev/fd/{reading}: it can be read only once; give a file that stays, to have it read again" in said
        assert len(limits(mirror)) == 1
        assert ask(mirror.image_url).status == 200
