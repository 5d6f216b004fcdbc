"""Chooses the proxy for a request toward upstream: `upstream.proxy`, else the environment's, or none."""

import base64
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from yarl import URL

from mirror.config import Upstream as UpstreamConfig
from mirror.model.errors import BadUpstream, ConfigError, MirrorError, Unavailable

_PORT = re.compile(r"([^:\[\]]*|\[[^\[\]]*\]):(\d{1,5})")  # an IPv6 address is in brackets if a port follows


class ProxyFailed(Exception):
    """A proxy is unreachable, or does not do what it was asked to.

    When it `refused`, it will do so again until somebody changes something.
    """

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused

    def told(self) -> MirrorError:
        """Return the error that a client is told."""
        return BadUpstream(str(self)) if self.refused else Unavailable(str(self))


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy: its `url` without user info; `source` is the key or variable that names it."""

    url: URL
    source: str
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"the proxy {self.url} ({self.source})"

    def failed(self, reason: str) -> ProxyFailed:
        """Make the error that the proxy cannot be used now."""
        return ProxyFailed(f"the proxy ({self.source}) {reason}")

    def refused(self, status: int, host: str) -> ProxyFailed:
        """Make the error that the proxy answered a request for a connection to `host` with `status`."""
        reason = f"the proxy ({self.source}) answered {status} when asked for {host}"
        if status in {401, 407}:  # tinyproxy answers 401 to a wrong password
            reason += ": it wants a user and password, or others than those in its URL"
        elif status < 500:
            reason += ": it has to allow that"
        return ProxyFailed(reason, refused=status < 500)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxy for each scheme, and the hosts that need none. `Proxies()` never uses a proxy."""

    http: Proxy | None = None
    https: Proxy | None = None
    no_proxy: str = ""

    @classmethod
    def of(cls, config: UpstreamConfig, environ: Mapping[str, str]) -> "Proxies":
        """Use `upstream.proxy` for everything, else HTTP_PROXY and HTTPS_PROXY, except for the hosts of NO_PROXY.

        A variable in lower case takes precedence over the same one in upper case, even when it is empty.

        Raises ConfigError, which names the variable and never quotes it.
        """
        if config.proxy is not None:
            proxy = _proxy(config.proxy, "upstream.proxy")
            return cls(http=proxy, https=proxy)
        return cls(
            http=_from_environment(environ, "http_proxy"),
            https=_from_environment(environ, "https_proxy"),
            no_proxy=_variable(environ, "no_proxy")[1],
        )

    def for_url(self, url: URL) -> Proxy | None:
        """Return the proxy to use for this http or https URL; None for a direct connection."""
        proxy = self.https if url.scheme == "https" else self.http
        return None if proxy is None or excepted(url.raw_host or "", self.no_proxy, url.port) else proxy


def excepted(host: str, no_proxy: str, port: int | None = None) -> bool:
    """Return whether `no_proxy`, with commas or blanks between its entries, covers `host`, as curl reads it.

    A name covers itself and all names below it, whether it begins with a dot or not; an address covers itself, and a
    network such as 10.0.0.0/8 its addresses; names are not resolved. `*` covers everything. Beyond what curl does, an
    entry that ends with `:` and a port covers that port only.
    """
    entries = [entry for entry in _of_port(no_proxy.replace(",", " ").lower().split(), port) if entry]
    if "*" in entries:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = f".{host.lower().rstrip('.')}"
        return any(name.endswith(f".{entry.strip('.')}") for entry in entries if entry.strip("."))
    return any(_has(entry, address) for entry in entries)


def _of_port(entries: Sequence[str], port: int | None) -> Iterator[str]:
    """Return the entries without their ports, leaving out entries for other ports."""
    for entry in entries:
        ended = _PORT.fullmatch(entry)
        if ended is None:
            yield entry
        elif port == int(ended[2]):
            yield ended[1]


def _has(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False


def _from_environment(environ: Mapping[str, str], name: str) -> Proxy | None:
    variable, value = _variable(environ, name)
    if not value:
        return None
    try:
        checked = UpstreamConfig.model_validate({"proxy": value if "://" in value else f"http://{value}"})
    except ValidationError as error:
        raise ConfigError(f"{variable}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return _proxy(checked.proxy or "", variable)


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    variable = name if name in environ else name.upper()
    return variable, environ.get(variable, "").strip()


def _proxy(text: str, source: str) -> Proxy:
    try:
        url = URL(text)
        user = url.user
        if user is None:
            return Proxy(url.origin(), source)
        if ":" in user:
            raise ValueError("RFC 7617 has no way to say that")
    except ValueError:  # or the port is not one
        raise ConfigError(f"{source}: expected a proxy such as http://user:password@proxy.example.com:3128") from None
    credentials = base64.b64encode(f"{user}:{url.password or ''}".encode()).decode()
    return Proxy(url.with_user(None).origin(), source, f"Basic {credentials}")
