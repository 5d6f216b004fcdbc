"""Who did what to a mirror: by the admin listener, by commands, by another configuration."""

import signal
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import Simulator
from tests.support.admin import CHANGING, ask_admin
from tests.support.commands import run
from tests.support.downloads import fetch
from tests.support.fixtures import Canary, FreshMirror
from tests.support.hooks import hook, in_file
from tests.support.processes import MirrorProcess, eventually

TOKEN = "the-token-of-the-operators"


def audit(mirror: MirrorProcess, **headers: str) -> Any:
    """What /api/audit says, oldest first."""
    answer = ask_admin(mirror, "GET", "/api/audit", headers)
    assert answer.status == 200
    return list(reversed(answer.json))


def test_what_operators_do_by_the_admin_listener_is_recorded(
    simulator: Simulator, fresh_mirror: FreshMirror, tmp_path: Path, canary: Canary
) -> None:
    canary.hide(TOKEN)
    (tmp_path / "token").write_text(TOKEN)
    mirror = fresh_mirror({"admin": {"token_file": str(tmp_path / "token")}, "log": {"format": "json"}})
    fetch(mirror.image_url)
    image_hash = simulator.image_sha256("first")
    with_token = CHANGING | {"Authorization": f"Bearer {TOKEN}"}
    for method, path in [
        ("POST", "/api/images/current/pin"),
        ("POST", f"/api/images/{image_hash[:10]}/unpin"),
        ("POST", "/api/images/ffffffff/pin"),
        ("POST", "/api/images/current/verify"),
        ("POST", "/api/prefetch"),
        ("DELETE", "/api/images/current?force=true"),
    ]:
        ask_admin(mirror, method, path, with_token)
    ask_admin(mirror, "POST", "/api/images/current/pin", CHANGING)  # without the token nothing is done
    records = audit(mirror)
    assert [(each["action"], each["what"]) for each in records[:4]] == [
        ("pin", image_hash),
        ("unpin", image_hash),
        ("pin", "ffffffff"),
        ("verify", image_hash),
    ]
    assert records[2]["outcome"].startswith("failed: ")
    assert records[0]["outcome"] == f"{image_hash[:12]} is pinned"
    assert [each["action"] for each in records[4:]] == ["prefetch", "delete by force"]
    assert {each["who"] for each in records} == {"127.0.0.1 with the admin token"}
    told = mirror.settled.events("operator.acted")
    assert [line["event.category"] for line in told] == [["configuration"]] * 6
    assert "What operators did" in ask_admin(mirror, "GET", "/").body.decode()


def test_what_commands_do_is_recorded_and_the_mirror_that_runs_shows_it(
    simulator: Simulator, fresh_mirror: FreshMirror, tmp_path: Path
) -> None:
    mirror = fresh_mirror()
    fetch(mirror.image_url)
    image_hash = simulator.image_sha256("first")
    (tmp_path / "medium").mkdir()
    for words in (
        ("pin", "current"),
        ("unpin", image_hash[:8]),
        ("verify",),
        ("export", "current", tmp_path / "medium"),
        ("rm", "current"),
        ("gc",),
        ("gc", "--dry-run"),
        ("rm", "--force", "current"),
        ("import", tmp_path / "medium"),
    ):
        run(*words, "-c", mirror.config_file)
    records = audit(mirror)
    assert [(each["action"], each["what"]) for each in records] == [
        ("pin", image_hash),
        ("unpin", image_hash),
        ("verify", "all"),
        ("export", f"current to {tmp_path / 'medium'}"),
        ("delete", "current"),
        ("gc", "store"),
        ("delete by force", image_hash),
        ("import", f"{image_hash} from {tmp_path / 'medium'}"),
    ]
    assert records[2]["outcome"] == "1 good, 0 not"
    assert records[4]["outcome"].startswith("failed: ")
    assert all(each["who"].endswith(", by command") for each in records)


def test_another_hook_is_recorded(fresh_mirror: FreshMirror) -> None:
    mirror = fresh_mirror()
    assert audit(mirror) == []
    before = mirror.config_file.read_text()
    mirror.config_file.write_text(before + in_file(hook("rollout", command=["/bin/true"])))
    mirror.send_signal(signal.SIGHUP)
    eventually(lambda: audit(mirror))
    mirror.send_signal(signal.SIGHUP)  # which changes nothing
    eventually(lambda: mirror.actions().count("mirror.reloaded") == 2)
    (record,) = audit(mirror)
    assert (record["who"], record["action"], record["what"]) == ("SIGHUP", "change hooks", "rollout")


def test_beyond_this_machine_the_audit_takes_the_token(
    fresh_mirror: FreshMirror, tmp_path: Path, canary: Canary
) -> None:
    canary.hide(TOKEN)
    (tmp_path / "token").write_text(TOKEN)
    mirror = fresh_mirror({"admin": {"host": "0.0.0.0", "token_file": str(tmp_path / "token")}})
    assert ask_admin(mirror, "GET", "/api/audit").status == 401
    assert audit(mirror, Authorization=f"Bearer {TOKEN}") == []


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_the_audit_can_only_be_read(fresh_mirror: FreshMirror, method: str) -> None:
    assert ask_admin(fresh_mirror(), method, "/api/audit", CHANGING).status == 405
