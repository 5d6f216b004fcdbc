"""Credentials for another registry, as `docker login` and `podman login` leave them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.model.errors import ConfigError
from mirror.model.push_target import Target
from mirror.registry.push.docker_credentials import Credential, find

HARBOR = Target.parse("harbor.site/datarobot/pps:1")
HUB = Target.parse("docker.io/datarobot/pps")


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def docker(home: Path, config: dict[str, Any]) -> dict[str, str]:
    """The environment of a user with that `config.json`."""
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker" / "config.json").write_text(json.dumps(config))
    return {"HOME": str(home), "PATH": f"{home}:/usr/bin:/bin"}


def helper(home: Path, name: str, script: str) -> None:
    program = home / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("target", "auths"),
    [
        (HARBOR, {"harbor.site": auth("me", "se:cret")}),
        (HARBOR, {"https://harbor.site": auth("me", "se:cret")}),
        (HARBOR, {"https://harbor.site/v2/": auth("me", "se:cret")}),
        (HARBOR, {"harbor.site/datarobot": auth("me", "se:cret"), "harbor.site": auth("another", "one")}),
        (HARBOR, {"harbor.site": {"username": "me", "password": "se:cret"}}),
        (HUB, {"https://index.docker.io/v1/": auth("me", "se:cret")}),
        (HUB, {"docker.io": auth("me", "se:cret")}),
    ],
    ids=str,
)
def test_it_stands_in_the_file(tmp_path: Path, target: Target, auths: dict[str, Any]) -> None:
    found = find(target, docker(tmp_path, {"auths": auths}))
    assert found == Credential("me", "se:cret")
    assert "cret" not in repr(found)


@pytest.mark.parametrize(
    "auths", [{}, {"harbor.site.evil.example": auth("me", "x")}, {"harbor.site:5000": auth("me", "x")}], ids=str
)
def test_another_registrys_credential_is_not_taken(tmp_path: Path, auths: dict[str, Any]) -> None:
    assert find(HARBOR, docker(tmp_path, {"auths": auths})) is None


def test_an_identity_token_is_no_password(tmp_path: Path) -> None:
    entry = {**auth("me", ""), "identitytoken": "token"}
    assert find(HARBOR, docker(tmp_path, {"auths": {"harbor.site": entry}})) == Credential("me", "", "token")


def test_files_are_looked_at_in_the_order_of_docker_and_podman(tmp_path: Path) -> None:
    environ = docker(tmp_path, {"auths": {"harbor.site": auth("home", "x")}})
    for name, owner in (("config.json", "named"), ("auth.json", "podman"), ("mine.json", "given")):
        directory = tmp_path / ("containers" if name == "auth.json" else "elsewhere")
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps({"auths": {"harbor.site": auth(owner, "x")}}))

    def user(**more: str) -> str | None:
        found = find(HARBOR, environ | more)
        return found.user if found else None

    assert user() == "home"
    assert user(DOCKER_CONFIG=str(tmp_path / "elsewhere")) == "named"
    assert user(HOME="/nowhere", XDG_RUNTIME_DIR=str(tmp_path)) == "podman"
    assert user(REGISTRY_AUTH_FILE=str(tmp_path / "elsewhere" / "mine.json")) == "given"
    assert user(HOME="/nowhere") is None


def test_a_helper_is_asked_for_its_registry_and_a_store_for_all(tmp_path: Path) -> None:
    helper(tmp_path, "cloud", """read name; echo "{\\"Username\\": \\"cloud\\", \\"Secret\\": \\"$name\\"}" """)
    helper(tmp_path, "all", """read name; echo "{\\"Username\\": \\"<token>\\", \\"Secret\\": \\"$name\\"}" """)
    config = {"credHelpers": {"harbor.site": "cloud"}, "credsStore": "all", "auths": {"harbor.site": {}}}
    environ = docker(tmp_path, config)
    assert find(HARBOR, environ) == Credential("cloud", "harbor.site")
    assert find(Target.parse("other.site/pps"), environ) == Credential("", "", "other.site")
    assert find(HUB, environ) == Credential("", "", "https://index.docker.io/v1/")


def test_a_helper_that_knows_nothing_leaves_it_to_the_file(tmp_path: Path) -> None:
    helper(tmp_path, "all", "echo 'credentials not found in native keychain'; exit 1")
    assert find(HARBOR, docker(tmp_path, {"credsStore": "all", "auths": {"harbor.site": auth("me", "x")}})) == (
        Credential("me", "x")
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "docker-credential-broken, which is not on PATH"),
        ("echo 'no session, log in first' >&2; exit 1", "no session, log in first"),
        ("exit 3", "3"),
        ("echo nothing", "something else than a credential"),
        ("echo '[]'", "something else than a credential"),
        ("echo '{}'", "something else than a credential"),
    ],
)
def test_a_helper_that_fails_is_named(tmp_path: Path, script: str | None, said: str) -> None:
    if script is not None:
        helper(tmp_path, "broken", script)
    environ = docker(tmp_path, {"credHelpers": {"harbor.site": "broken"}})
    with pytest.raises(ConfigError, match="docker-credential-broken") as raised:
        find(HARBOR, environ)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"auths": [1]}',
        '{"auths": {"harbor.site": {"auth": "!"}}}',
        '{"credHelpers": {"harbor.site": "../../bin/sh"}}',
    ],
)
def test_a_file_that_is_not_dockers_is_named(tmp_path: Path, text: str) -> None:
    environ = docker(tmp_path, {})
    (tmp_path / ".docker" / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is not as docker login writes it"):
        find(HARBOR, environ)
