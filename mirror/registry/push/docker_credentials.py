"""Finds the credential for a registry where `docker login` and `podman login` leave it.

| file | written by |
| --- | --- |
| `$REGISTRY_AUTH_FILE` | whoever names it |
| `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json` | docker |
| `$XDG_RUNTIME_DIR/containers/auth.json` | podman, skopeo, buildah |

Each is docker's `config.json`: `auths`, and the programs that keep credentials elsewhere, `credHelpers` and
`credsStore` (https://github.com/docker/docker-credential-helpers).
"""

import base64
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.model.errors import ConfigError
from mirror.model.push_target import Target

_HELPER_SECONDS = 30.0
"""A helper may ask a cloud's service for a credential; one that asks a person hangs."""

_HUB = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"  # noqa: S105 - by this user name a helper says that the secret is an identity token
_NOTHING_KNOWN = "credentials not found"


@dataclass(frozen=True, slots=True)
class Credential:
    """A user and a password, or an identity token, which a token server exchanges for another token."""

    user: str
    password: str
    identity_token: str | None = None

    def __repr__(self) -> str:
        return f"Credential({self.user!r}, ...)"

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header with user and password."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find(target: Target, environ: Mapping[str, str]) -> Credential | None:
    """Return the credential for the target's registry, or None. Blocks. Raises ConfigError for an unusable file."""
    for file in _files(environ):
        try:
            text = file.read_text()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from None
        try:
            config = json.loads(text)
            found = _found_in(config if isinstance(config, dict) else {}, target, environ)
        except ValueError as error:
            raise ConfigError(f"{file} is not as docker login writes it: {error}") from None
        if found is not None:
            return found
    return None


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    if given := environ.get("REGISTRY_AUTH_FILE"):
        yield Path(given)
        return
    if directory := environ.get("DOCKER_CONFIG"):
        yield Path(directory, "config.json")
    elif home := environ.get("HOME"):
        yield Path(home, ".docker", "config.json")
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime, "containers", "auth.json")


def _found_in(config: Mapping[str, Any], target: Target, environ: Mapping[str, str]) -> Credential | None:
    """Look as docker does: the helper of this registry, then the helper for all, then the file itself."""
    hub = target.registry in {"docker.io", "index.docker.io"}
    name = _HUB if hub else target.registry
    helpers = config.get("credHelpers") or {}
    auths = config.get("auths") or {}
    if not isinstance(helpers, dict) or not isinstance(auths, dict):
        raise ValueError("auths and credHelpers are tables")
    for helper in (helpers.get(target.registry), config.get("credsStore")):
        if helper and (found := _ask(str(helper), name, environ)) is not None:
            return found
    # podman also writes a credential for a part of a registry; docker writes an address in place of a host
    parts = [target.registry, *target.repository.split("/")]
    names = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    entries = {re.sub(r"^https?://|/v[12]/?$|/$", "", key): entry for key, entry in auths.items()}
    for key in (*names, *(("index.docker.io",) if hub else ())):
        if isinstance(entry := entries.get(key), dict) and entry:
            return _entry(entry)
    return None


def _entry(entry: Mapping[str, Any]) -> Credential:
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if text := entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(text), validate=True).decode().rstrip("\0").partition(":")
        except ValueError:
            raise ValueError("auth is not base64 of user:password") from None
    return Credential(user, password, str(entry["identitytoken"]) if entry.get("identitytoken") else None)


def _ask(helper: str, server: str, environ: Mapping[str, str]) -> Credential | None:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", helper):
        raise ValueError(f"{helper!r} is no name of a credential helper")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(  # noqa: S603 - the name was judged above, and docker runs it too
            [program, "get"],
            input=server,
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stdout.strip() or done.stderr.strip()).splitlines()[:1]
            if said and _NOTHING_KNOWN in said[0].lower():
                return None
            raise ConfigError(f"{program} knows no credential for {server}: {said[0] if said else done.returncode}")
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except FileNotFoundError:
        raise ConfigError(f"docker's config.json names {program}, which is not on PATH") from None
    except OSError as error:
        raise ConfigError(f"{program} cannot be run: {error}") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{program} has not answered within {_HELPER_SECONDS:.0f} s") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{program} answered something else than a credential") from None
    return Credential("", "", secret) if user == _TOKEN_USER else Credential(user, secret)
