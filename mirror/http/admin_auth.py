"""Decides which requests may read from the admin listener, and which may change something through it.

It defends against three attackers: one on the network who lacks the token; a web page that an operator has open (it can
send requests to this listener, but without a header of its own choice unless we allow that); and one who makes a host
name point at this listener (DNS rebinding: the browser then believes that the attacker's page comes from here).

Behind a reverse proxy all requests come from this machine, and `Host` may be anything: `admin.public_url` says how
people reach the listener. Then the token is required as if the listener were not on loopback.
"""

import asyncio
import base64
import hmac
from concurrent.futures import Executor
from urllib.parse import urlsplit

from aiohttp import web
from yarl import URL

from mirror.common.hosts import is_address, is_loopback, unmapped
from mirror.config import Config, load_admin_token
from mirror.config.reloadable import Ready
from mirror.http.errors import JSON
from mirror.http.token_guesses import Guesses
from mirror.model.errors import ConfigError, Forbidden, Unauthorized

REQUESTED = "X-Requested-With"
"""A header that no web page can send to another origin unless that origin allows it, which we never do."""


class AdminAccess:
    """Admits requests. The listener is bound to `host`; `public_url` is its address behind a proxy, if any."""

    def __init__(self, host: str, public_url: str | None, pool: Executor, guesses: Guesses) -> None:
        self._host = host
        public = urlsplit(public_url or "")
        self._public_host = public.hostname
        self._public_origin = str(URL(public_url).origin()) if public_url else None  # as browsers send it
        self._from_elsewhere = not is_loopback(host) or (
            public.hostname is not None and not is_loopback(public.hostname)
        )
        self._guesses = guesses
        self._pool = pool
        self._token: str | None = None

    async def prepare(self, config: Config) -> Ready:
        """Read the token file, at start and on SIGHUP. Raises ConfigError, and then changes nothing."""
        token = await asyncio.get_running_loop().run_in_executor(self._pool, load_admin_token, config)
        if token is None and self._from_elsewhere:
            raise ConfigError("the admin listener is reached from elsewhere, so admin.token_file is required")

        def apply() -> None:
            self._token = token
            self._guesses.forget()

        return Ready(apply, ("admin.token_file",) if token is not None else ())

    def may_look(self, request: web.BaseRequest) -> None:
        """Raise Unauthorized or Forbidden unless the request may read the status."""
        self._refuse_strange_host(request)
        if self._from_elsewhere:
            self._want_token(request)

    def may_change(self, request: web.BaseRequest) -> str:
        """Return who wants to change something, for the audit. Raises Forbidden or Unauthorized if they may not."""
        if REQUESTED not in request.headers and request.content_type != JSON:
            raise Forbidden(f"a request that changes something needs the header {REQUESTED}: pps-mirror")
        self._refuse_other_origin(request)
        self._refuse_strange_host(request)
        if self._token is not None:
            self._want_token(request)
        address = unmapped(self._address_of(request)) or "unknown"
        return address if self._token is None else f"{address} with the admin token"

    def _want_token(self, request: web.BaseRequest) -> None:
        given = _token_of(request.headers.get("Authorization", ""))
        if not given:
            raise Unauthorized(
                "this needs the token of admin.token_file: send Authorization: Bearer TOKEN, or in a browser any user "
                "name and the token as password"
            )
        address = self._address_of(request)
        self._guesses.admit(address, given)
        if self._token is None or not hmac.compare_digest(given, self._token.encode()):
            self._guesses.was_wrong(address, given)
            raise Unauthorized("this is not the token of admin.token_file")
        self._guesses.was_right(address)

    def _address_of(self, request: web.BaseRequest) -> str:
        """Return the client's address; behind a proxy, the one that the proxy put last into `X-Forwarded-For`.

        A client that bypasses the proxy and forges it is still bound by the limit for all addresses together.
        """
        if self._public_origin is not None:
            forwarded = ",".join(request.headers.getall("X-Forwarded-For", ())).rpartition(",")[2].strip()
            if is_address(forwarded):
                return forwarded
        return request.remote or "unknown"

    def _refuse_strange_host(self, request: web.BaseRequest) -> None:
        """On loopback, raise Forbidden unless `Host` is an address, a name of this machine, or the public one.

        An attacker's name that is made to point here is refused by this.
        """
        if not is_loopback(self._host):
            return
        host = _host_of(request.headers.get("Host", ""))
        if host is None or not (host in {self._host, "localhost", self._public_host} or is_address(host)):
            raise Forbidden(
                "the admin listener answers to localhost, to addresses and to the host of admin.public_url only, not "
                "to another Host"
            )

    def _refuse_other_origin(self, request: web.BaseRequest) -> None:
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site", "none")
        ours = {f"{scheme}://{request.headers.get('Host')}" for scheme in _SCHEMES} | {self._public_origin}
        if site not in {"same-origin", "none"} or (origin is not None and origin not in ours):
            raise Forbidden(
                "this request comes from a page of another site; behind a proxy, set admin.public_url to what people "
                "have in their browser's address bar"
            )


_SCHEMES = ("http", "https")  # https: a proxy in front of us may use it


def _host_of(header: str) -> str | None:
    try:
        return URL(f"http://{header}").host
    except ValueError:
        return None


def _token_of(authorization: str) -> bytes | None:
    """Return the token of `Bearer TOKEN` or, as browsers send it, the password of `Basic ...`; else None."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).partition(b":")[2]
        except ValueError:  # characters that it may not have, or an end that it cannot have
            return None
    return None
