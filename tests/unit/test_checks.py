"""What `pps-mirror check` finds, and that it finds it without changing anything."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mirror.cli.check import listeners
from mirror.cli.check import main as checks
from mirror.cli.findings import Finding
from mirror.config import Config
from mirror.simulator.client import Fault, ImageSpec, Simulator
from tests.support.certificates import certificate
from tests.support.hooks import hook
from tests.support.processes import free_port
from tests.support.tokens import write_tokens


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[Simulator]:
    with Simulator.start([ImageSpec("first", size=1 << 20)]) as simulator:
        yield simulator


@pytest.fixture
def with_token(simulator: Simulator) -> dict[str, str]:
    return {"DATAROBOT_API_TOKEN": simulator.token}


def check(
    tmp_path: Path, environ: Mapping[str, str] | None = None, **sections: Mapping[str, Any]
) -> dict[str, Finding]:
    """Run all checks on free ports and a store that is not there, unless `sections` say otherwise."""
    tree: dict[str, dict[str, Any]] = {
        "server": {"host": "127.0.0.1", "port": 0},
        "admin": {"port": 0},
        "store": {"path": str(tmp_path / "store"), "min_free": 0},
    }
    for name, values in sections.items():
        tree.setdefault(name, {}).update(values)
    found = {finding.check: finding for finding in checks.run(Config.model_validate(tree), environ or {}, None)}
    assert list(found) == ["configuration", "upstream", "token", "store", "tls", "server", "admin", "registry"]
    return found


def failed(found: Mapping[str, Finding]) -> list[str]:
    return [name for name, finding in found.items() if not finding.ok]


# Upstream and the token


def test_a_mirror_that_would_work_fails_nothing(
    tmp_path: Path, simulator: Simulator, with_token: dict[str, str]
) -> None:
    found = check(tmp_path, with_token, upstream={"url": simulator.api_url})
    assert failed(found) == []
    assert simulator.image_sha256("first")[:12] in found["upstream"].message
    assert found["token"].message == "upstream accepts the one in DATAROBOT_API_TOKEN"


def test_an_upstream_that_asks_for_a_token_is_reachable(tmp_path: Path, simulator: Simulator) -> None:
    found = check(tmp_path, upstream={"url": simulator.api_url})
    assert failed(found) == []
    assert found["upstream"].message.endswith("reachable, asked for a token (401)")
    assert found["token"].note


def test_the_list_of_tokens_is_read_and_its_names_are_shown(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "tokens", ops="x", ci="y")
    given = Config.model_validate({"auth": {"mode": "tokens", "tokens_file": str(file)}, "server": {"port": 0}})
    found = {finding.check: finding for finding in checks.run(given, {}, None)}
    assert found["tokens"] == Finding("tokens", True, f"auth.tokens_file = '{file}' lets in ci, ops")
    file.write_text("")
    found = {finding.check: finding for finding in checks.run(given, {}, None)}
    assert (found["tokens"].ok, "nobody may read" in found["tokens"].message) == (False, True)


def test_hooks_have_what_they_need_and_are_told_nothing(tmp_path: Path) -> None:
    hooks = [
        hook("runs", command=["/bin/true"]),
        hook("gone", command=[str(tmp_path / "gone")]),
        hook("signs", url="http://localhost:1/", secret_file=str(tmp_path / "none")),
        hook("plain", url="http://localhost:1/"),
    ]
    given = Config.model_validate({"auth": {"mode": "open"}, "server": {"port": 0}, "hooks": hooks})
    found = [finding for finding in checks.run(given, {}, None) if finding.check == "hooks"]
    assert [finding.ok for finding in found] == [True, False, False, True]
    assert "secret_file" in found[2].message


def test_without_a_token_of_its_own_a_mirror_that_lets_everybody_in_has_nothing_to_ask_with(
    tmp_path: Path, simulator: Simulator
) -> None:
    found = check(tmp_path, upstream={"url": simulator.api_url}, auth={"mode": "open"})
    assert failed(found) == ["token"]


def test_a_token_that_upstream_refuses_fails_and_is_not_shown(tmp_path: Path, simulator: Simulator) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2")
    token.chmod(0o600)
    found = check(tmp_path, upstream={"url": simulator.api_url, "token_file": str(token)})
    assert failed(found) == ["token"]
    assert found["token"].message == "upstream refuses the one in upstream.token_file"
    assert "hunter2" not in str(found)


def test_a_token_file_that_is_not_there_fails_alone(tmp_path: Path, simulator: Simulator) -> None:
    found = check(tmp_path, upstream={"url": simulator.api_url, "token_file": "/nowhere"})
    assert failed(found) == ["token"]
    assert "/nowhere" in found["token"].message


def test_an_upstream_that_nobody_answers_at_fails_and_leaves_the_token_untried(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    found = check(tmp_path, {"DATAROBOT_API_TOKEN": "hunter2"}, upstream={"url": url})
    assert failed(found) == ["upstream"]
    assert "connection refused" in found["upstream"].message
    assert "could not be tried" in found["token"].message


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("metadata", body="<html>"), "not a JSON object"),
        (Fault("metadata", omit=("hash",)), "field 'hash' is missing"),
        (Fault("metadata", status=500), "500"),
    ],
)
def test_an_upstream_that_answers_nonsense_fails(
    tmp_path: Path, simulator: Simulator, with_token: dict[str, str], fault: Fault, said: str
) -> None:
    simulator.fault(fault)
    found = check(tmp_path, with_token, upstream={"url": simulator.api_url})
    assert failed(found) == ["upstream"]
    assert said in found["upstream"].message


def test_an_upstream_without_an_image_is_worth_a_note(
    tmp_path: Path, simulator: Simulator, with_token: dict[str, str]
) -> None:
    simulator.roll_over("none")
    found = check(tmp_path, with_token, upstream={"url": simulator.api_url})
    assert failed(found) == []
    assert found["upstream"].note
    assert "has no image" in found["upstream"].message


def test_no_upstream_is_right_only_when_it_is_not_asked_who_may_read(tmp_path: Path) -> None:
    assert failed(check(tmp_path)) == ["upstream"]
    assert failed(check(tmp_path, auth={"mode": "open"})) == []


def test_a_bundle_of_authorities_that_cannot_be_read_is_named(tmp_path: Path, simulator: Simulator) -> None:
    found = check(tmp_path, upstream={"url": simulator.api_url, "ca_file": "/nowhere"})
    assert failed(found) == ["upstream"]
    assert "upstream.ca_file = '/nowhere'" in found["upstream"].message


# The store


def test_a_store_is_tried_without_leaving_anything_behind(tmp_path: Path) -> None:
    assert "does not exist yet" in check(tmp_path)["store"].message
    assert list(tmp_path.iterdir()) == []
    for name in ("images", "partial"):
        (tmp_path / "store" / name).mkdir(parents=True)
    assert "store: writable" in check(tmp_path)["store"].message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["images", "partial", "store"]


@pytest.mark.parametrize("bad", ["store", "store/partial"])
def test_a_store_that_cannot_be_written_fails(tmp_path: Path, bad: str) -> None:
    (tmp_path / bad).parent.mkdir(exist_ok=True)
    (tmp_path / bad).touch()  # a file where a directory should be: refused to root as well
    found = check(tmp_path)["store"]
    assert not found.ok
    assert f"{tmp_path / bad} cannot be written" in found.message
    assert "Not a directory" in found.message


def test_a_disk_without_room_above_min_free_fails(tmp_path: Path) -> None:
    found = check(tmp_path, store={"min_free": "4000TiB"})["store"]
    assert not found.ok
    assert "no image has room" in found.message


def test_a_disk_without_room_for_the_current_image_fails_until_the_image_is_there(
    tmp_path: Path, simulator: Simulator, with_token: dict[str, str]
) -> None:
    simulator.fault(Fault("metadata", values={"imageSize": 5 << 40}, times=None))
    found = check(tmp_path, with_token, upstream={"url": simulator.api_url})["store"]
    assert not found.ok
    assert "the current image needs 5.0 TiB more" in found.message
    stored = tmp_path / "store" / "images" / simulator.image_sha256("first")
    stored.mkdir(parents=True)
    found = check(tmp_path, with_token, upstream={"url": simulator.api_url})["store"]
    assert not found.ok
    assert "this image needs 5.0 TiB more" in found.message
    (stored / "image").touch()
    assert check(tmp_path, with_token, upstream={"url": simulator.api_url})["store"].ok


# TLS


def test_a_certificate_that_is_good_for_a_while_says_how_long(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls", days=30.5)
    found = check(tmp_path, server={"tls_cert": str(cert), "tls_key": str(key)})["tls"]
    assert (found.ok, found.note) == (True, False)
    assert found.message.endswith(", 30 days from now")


def test_a_certificate_that_ends_soon_is_worth_a_note(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls", days=5.5)
    found = check(tmp_path, server={"tls_cert": str(cert), "tls_key": str(key)})["tls"]
    assert (found.ok, found.note) == (True, True)


def test_a_certificate_that_has_ended_fails(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "tls", days=-1)
    found = check(tmp_path, server={"tls_cert": str(cert), "tls_key": str(key)})["tls"]
    assert not found.ok
    assert "certificate has expired" in found.message


def test_a_key_of_another_certificate_fails(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path / "one")
    _, key = certificate(tmp_path / "other")
    found = check(tmp_path, server={"tls_cert": str(cert), "tls_key": str(key)})["tls"]
    assert not found.ok
    assert "server.tls_cert" in found.message


# The listeners


def test_a_free_port_is_still_free_after_the_check(tmp_path: Path) -> None:
    port = free_port()
    for _ in range(2):
        assert check(tmp_path, server={"port": port})["server"].message == f"127.0.0.1 port {port} is free"


def test_a_port_that_somebody_else_has_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        found = check(tmp_path, server={"port": stranger.getsockname()[1]})
    assert failed(found) == ["upstream", "server"]
    assert "Address already in use" in found["server"].message


def test_an_address_that_is_not_this_machines_fails(tmp_path: Path) -> None:
    found = check(tmp_path, server={"host": "192.0.2.1", "port": free_port()})["server"]
    assert not found.ok
    assert "192.0.2.1" in found.message
