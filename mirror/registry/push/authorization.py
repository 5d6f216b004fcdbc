"""Gets in at a registry: answers its challenge with Basic credentials, or fetches a token where it says.

https://distribution.github.io/distribution/spec/auth/token/ and .../auth/oauth/. A credential goes to the registry and
to the token server that the registry names, which has to be https if the registry is.
"""

import json
import re
from collections.abc import Mapping

import aiohttp
from yarl import URL

from mirror.model.errors import MirrorError
from mirror.registry.push.docker_credentials import Credential

_CHALLENGE = re.compile(r"\s*(?P<scheme>[A-Za-z]+)\s+(?P<parameters>.*)", re.DOTALL)
_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_MAX_ANSWER = 1 << 20


class Authorization:
    """The `Authorization` header for requests to one repository of one registry; None until the registry wants it."""

    def __init__(self, session: aiohttp.ClientSession, registry: URL, credential: Credential | None) -> None:
        self._session = session
        self._registry = registry
        self._credential = credential
        self._value: str | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """What to add to a request for the registry, and to no other."""
        return {"Authorization": self._value} if self._value is not None else {}

    async def answer(self, challenge: str, scopes: tuple[str, ...]) -> None:
        """Answer a `WWW-Authenticate` header. Raises MirrorError, and what aiohttp raises for a broken line."""
        scheme, parameters = _parse(challenge)
        if scheme == "basic":
            if self._credential is None:
                raise MirrorError(
                    f"{self._registry.host} wants a user and a password: run docker login, or podman login"
                )
            self._value = self._credential.basic
        elif scheme == "bearer":
            self._value = f"Bearer {await self._token(parameters, scopes)}"
        else:
            raise MirrorError(f"{self._registry.host} wants to be asked in a way that is not known here: {scheme}")

    async def _token(self, parameters: Mapping[str, str], scopes: tuple[str, ...]) -> str:
        realm = self._realm(parameters.get("realm", ""))
        query = [("scope", scope) for scope in scopes]
        if service := parameters.get("service"):
            query.append(("service", service))
        known = self._credential
        if known is not None and known.identity_token is not None:
            form = {"grant_type": "refresh_token", "refresh_token": known.identity_token, "client_id": "pps-mirror"}
            form |= {"scope": " ".join(scopes), **({"service": service} if service else {})}
            request = self._session.post(realm, data=form, allow_redirects=False)
        else:
            headers = {"Authorization": known.basic} if known is not None else {}
            request = self._session.get(realm.extend_query(query), headers=headers, allow_redirects=False)
        async with request as response:
            if response.status in {401, 403}:
                why = "refuses this user and password" if known else "wants a user and a password: run docker login"
                raise MirrorError(f"the token server {realm.host} {why}")
            if response.status != 200:
                raise MirrorError(f"the token server {realm.host} answered {response.status}")
            try:
                answer = json.loads(await response.content.read(_MAX_ANSWER))
                token = answer.get("token") or answer.get("access_token")
            except (ValueError, AttributeError):
                token = None
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
            raise MirrorError(f"the token server {realm.host} answered without a token")
        return token

    def _realm(self, text: str) -> URL:
        try:
            realm = URL(text)
        except ValueError:
            realm = URL()
        if realm.scheme not in {"http", "https"} or not realm.host or realm.user is not None:
            raise MirrorError(f"{self._registry.host} names no usable token server")
        if self._registry.scheme == "https" and realm.scheme != "https":
            raise MirrorError(f"{self._registry.host} names a token server that would read the password in clear text")
        return realm


def _parse(challenge: str) -> tuple[str, Mapping[str, str]]:
    match = _CHALLENGE.fullmatch(challenge)
    if match is None:
        return challenge.strip().lower(), {}
    found = _PARAMETER.findall(match["parameters"])
    return match["scheme"].lower(), {
        name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare for name, quoted, bare in found
    }
