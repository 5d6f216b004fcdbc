"""Sends events to a URL: a POST, signed as Standard Webhooks 1.0 says.

A redirect is not followed. The host's address is judged when connecting, as that of a redirect of upstream
(`mirror.upstream.redirects`): link-local addresses are refused, and loopback ones unless the URL itself names loopback.
A proxy is used as the environment says. The URL may be a secret; messages name its host only.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import math
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
from aiohttp.connector import SocketFactoryType
from yarl import URL

from mirror import __version__
from mirror.admin.hooks.cloud_event import CONTENT_TYPE, CloudEvent
from mirror.admin.hooks.target import Undelivered
from mirror.common.hosts import is_loopback
from mirror.common.log import harmless
from mirror.common.trust import trust
from mirror.common.units import format_duration
from mirror.config import Hook, Upstream
from mirror.model.errors import ConfigError
from mirror.upstream.proxies import Proxies
from mirror.upstream.redirects import ForbiddenAddress, RedirectPolicy
from mirror.upstream.statuses import retry_after

SECRET = "whsec_"  # noqa: S105 - what a secret begins with
KEY_BYTES = range(24, 65)
"""How many bytes a secret may have."""

QUOTED = 200
"""Bytes of an answer that are read, to be quoted."""


class Webhook:
    """A `Target`: the URL of a hook. Opening it reads files, in a thread: see `opened`."""

    def __init__(self, hook: Hook, keys: Sequence[bytes], tls: ssl.SSLContext, proxies: Proxies) -> None:
        assert hook.url is not None  # noqa: S101 - else it is a command
        self._url = URL(hook.url, encoded=True)
        self._host = self._url.host or ""
        self._keys = keys
        self._timeout = hook.timeout
        self._proxies = proxies
        self._policy = RedirectPolicy(self._url, [self._host] if is_loopback(self._host) else [])
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self.where = f"{self._url.scheme}://{self._host}{f':{self._url.port}' if self._url.explicit_port else ''}"

    @classmethod
    async def opened(cls, hook: Hook, environ: Mapping[str, str]) -> "Webhook":
        """Open it. Raises ConfigError when the file of its secret or of its authorities cannot be used."""
        loop = asyncio.get_running_loop()
        keys = await loop.run_in_executor(None, load_keys, hook)
        tls = await loop.run_in_executor(None, trusting, hook)
        return cls(hook, keys, tls, Proxies.of(Upstream(), environ))

    async def deliver(self, cloud_event: CloudEvent) -> str:
        """See `Target.deliver`."""
        now = int(time.time())
        headers = {"Content-Type": CONTENT_TYPE, "webhook-id": cloud_event.id, "webhook-timestamp": str(now)}
        if self._keys:
            headers["webhook-signature"] = " ".join(
                signature(key, cloud_event.id, now, cloud_event.body) for key in self._keys
            )
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(cloud_event.body, headers)
        except TimeoutError:
            raise Undelivered(f"{self._host} did not answer within {format_duration(self._timeout)}") from None
        except aiohttp.ClientConnectorCertificateError:
            raise Undelivered(f"the certificate of {self._host} is not trusted; see ca_file") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ForbiddenAddress):
                raise self._forbidden(error.os_error) from None
            raise Undelivered(f"{self._host} cannot be reached: {error.os_error.strerror or error.os_error}") from None
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            said = str(error).replace(str(self._url), self._host) or type(error).__name__
            raise Undelivered(f"{self._host} cannot be told: {harmless(said)}") from None

    async def close(self) -> None:
        """See `Target.close`."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> str:
        proxy, own = self._proxies.for_url(self._url), {}
        if proxy is not None:
            await self._judge_from_here()
            own = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
        if self._session is None:  # only now, because it has to be closed
            # a proxy may be anywhere, even on loopback
            self._session = _session(self._tls, self._policy.redirect_socket if proxy is None else None)
        async with self._session.post(
            self._url,
            data=body,
            headers=headers if self._url.scheme == "https" else {**headers, **own},
            allow_redirects=False,
            proxy=None if proxy is None else proxy.url,
            proxy_headers=own,
            timeout=aiohttp.ClientTimeout(total=None, ceil_threshold=math.inf),
        ) as answer:
            said = await answer.content.read(QUOTED)
            told = f"{self._host} answered {answer.status}"
            text = harmless(said.decode("utf-8", "replace").strip())
            if 200 <= answer.status < 300:
                return f"{told}: {text}" if text else told
            if 300 <= answer.status < 400:
                raise Undelivered(f"{told}, a redirect, which is not followed: name the right url")
            if answer.status == 410:
                raise Undelivered(f"{told}: it does not want this any more", never=True)
            raise Undelivered(f"{told}: {text}" if text else told, retry_after=retry_after(answer.headers) or 0.0)

    async def _judge_from_here(self) -> None:
        """Judge the addresses that the host has here, as the proxy will connect; one that has none is left to it."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._url.port)
        except OSError:
            return
        try:
            for each in found:
                self._policy.judge(each)
        except ForbiddenAddress as error:
            raise self._forbidden(error) from None

    def _forbidden(self, error: ForbiddenAddress) -> Undelivered:
        said = f"{self._host} leads to {error.strerror}, which is refused"
        if "loopback" in str(error):
            said += "; for a receiver on this machine, write localhost or its address in the url"
        return Undelivered(said)


def signature(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """Return one signature of Standard Webhooks, with its version."""
    signed = b".".join((event_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def load_keys(hook: Hook) -> Sequence[bytes]:
    """Read the secrets of a hook, one a line; several while one replaces another. Blocks. Raises ConfigError."""
    if hook.secret_file is None:
        return ()
    source = f"secret_file = {str(hook.secret_file)!r} of the hook {hook.name}"
    try:
        text = Path(hook.secret_file).read_text("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
    keys = []
    for line in text.split():
        try:
            key = base64.b64decode(line.removeprefix(SECRET), validate=True)
        except binascii.Error:
            key = b""
        if not line.startswith(SECRET) or len(key) not in KEY_BYTES:
            raise ConfigError(f"{source}: expected whsec_ and then 24 to 64 random bytes as base64, on each line")
        keys.append(key)
    if not keys:
        raise ConfigError(f"{source} is empty")
    return keys


def trusting(hook: Hook) -> ssl.SSLContext:
    """Trust the system's authorities and those of `ca_file`. Raises ConfigError."""
    return trust(hook.ca_file, f"ca_file = {str(hook.ca_file)!r} of the hook {hook.name}")


def _session(tls: ssl.SSLContext, factory: SocketFactoryType | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, socket_factory=factory, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"pps-mirror/{__version__}", "Accept-Encoding": "identity"},
    )
