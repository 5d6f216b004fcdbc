"""Who may look at the admin listener, and who may change something by it.

Three attackers: one on the network without the token; a web page that an operator has open (it can send requests to
this listener, but not with a header of its own choice unless we allow it); and one whose host name is made to point at
it (DNS rebinding: for a browser its page then comes from here).
"""

import asyncio
import base64
import binascii
import hmac
from concurrent.futures import Executor

from aiohttp import web
from yarl import URL

from mirror.config import Config, load_admin_token
from mirror.errors import ConfigError, Forbidden, Unauthorized
from mirror.hosts import is_address, is_loopback
from mirror.http.errors import JSON
from mirror.reloadable import Ready

REQUESTED = "X-Requested-With"
"""A header that no page can send across origins unless we say that it may, which we never do."""


class AdminAccess:
    """Lets requests in. `host` is what the listener is bound to."""

    def __init__(self, host: str, pool: Executor) -> None:
        self._host = host
        self._pool = pool
        self._token: str | None = None

    async def prepare(self, config: Config) -> Ready:
        """Read the token, at start and when asked to again. Raises ConfigError, having changed nothing."""
        token = await asyncio.get_running_loop().run_in_executor(self._pool, load_admin_token, config)
        if token is None and not is_loopback(self._host):
            raise ConfigError("the admin listener is not on loopback, so admin.token_file is required")

        def apply() -> None:
            self._token = token

        return Ready(apply, ("admin.token_file",) if token is not None else ())

    def may_look(self, request: web.BaseRequest) -> None:
        """Raise Unauthorized or Forbidden unless the request may see how the mirror is."""
        if is_loopback(self._host):
            self._refuse_strange_host(request)
        else:
            self._want_token(request)

    def may_change(self, request: web.BaseRequest) -> None:
        """Raise Forbidden or Unauthorized unless the request may change something."""
        if REQUESTED not in request.headers and request.content_type != JSON:
            raise Forbidden(f"a request that changes something needs the header {REQUESTED}: pps-mirror")
        self._refuse_other_origin(request)
        if is_loopback(self._host):
            self._refuse_strange_host(request)
        if self._token is not None:
            self._want_token(request)

    def _want_token(self, request: web.BaseRequest) -> None:
        given = _token_of(request.headers.get("Authorization", ""))
        if not given:
            raise Unauthorized(
                "this needs the token of admin.token_file: send Authorization: Bearer TOKEN, or in a browser any user "
                "name and the token as password"
            )
        if self._token is None or not hmac.compare_digest(given, self._token.encode()):
            raise Unauthorized("this is not the token of admin.token_file")

    def _refuse_strange_host(self, request: web.BaseRequest) -> None:
        """Answer to addresses and to names that mean this machine: no other name is made to point at it in vain."""
        host = _host_of(request.headers.get("Host", ""))
        if host is None or not (host == self._host or host == "localhost" or is_address(host)):
            raise Forbidden("the admin listener answers to localhost and to addresses only, not to another Host")

    def _refuse_other_origin(self, request: web.BaseRequest) -> None:
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site", "none")
        if site not in {"same-origin", "none"} or (
            origin is not None and origin not in {f"{scheme}://{request.headers.get('Host')}" for scheme in _SCHEMES}
        ):
            raise Forbidden("this request comes from a page of another site")


_SCHEMES = ("http", "https")  # https: a proxy before us may speak it


def _host_of(header: str) -> str | None:
    try:
        return URL(f"http://{header}").host
    except ValueError:
        return None


def _token_of(authorization: str) -> bytes | None:
    """The token of `Bearer TOKEN`, or the password of `Basic ...`, as browsers send it."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    return None
