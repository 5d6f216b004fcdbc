"""Which proxy a request toward upstream goes through: that of `upstream.proxy`, else the environment's, or none.

A proxy's user and password are sent to that proxy only; nothing here shows them.
"""

import base64
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from yarl import URL

from mirror.config import Upstream as UpstreamConfig
from mirror.model.errors import BadUpstream, ConfigError, MirrorError, Unavailable

_PORT = re.compile(r"([^:\[\]]*|\[[^\[\]]*\]):(\d{1,5})")  # an address with colons has brackets before a port


class ProxyFailed(Exception):
    """A proxy is not there, or does not do what it was asked to.

    When it `refused`, it will again, until somebody changes something.
    """

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused

    def told(self) -> MirrorError:
        """What a client is told."""
        return BadUpstream(str(self)) if self.refused else Unavailable(str(self))


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, its `url` without user info; `source` is the key or variable that names it.

    `authorization` is the value of Proxy-Authorization (RFC 7617), None without a user.
    """

    url: URL
    source: str
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"the proxy {self.url} ({self.source})"

    def failed(self, reason: str) -> ProxyFailed:
        """Say that it cannot be used now."""
        return ProxyFailed(f"the proxy ({self.source}) {reason}")

    def refused(self, status: int, host: str) -> ProxyFailed:
        """Say that it answered a request for a connection to `host` with `status`."""
        reason = f"the proxy ({self.source}) answered {status} when asked for {host}"
        if status in {401, 407}:  # tinyproxy answers 401 to a wrong password
            reason += ": it wants a user and password, or others than those in its URL"
        elif status < 500:
            reason += ": it has to allow that"
        return ProxyFailed(reason, refused=status < 500)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxy for each scheme, and for which hosts there is none. `Proxies()` is none for any."""

    http: Proxy | None = None
    https: Proxy | None = None
    no_proxy: str = ""

    @classmethod
    def of(cls, config: UpstreamConfig, environ: Mapping[str, str]) -> "Proxies":
        """Take `upstream.proxy` for everything, else HTTP_PROXY and HTTPS_PROXY, but for the hosts of NO_PROXY.

        A variable in lower case wins over the same one in upper case, also when it is empty.

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
        """Return the proxy that must be asked for this http or https URL; None when it is asked directly."""
        proxy = self.https if url.scheme == "https" else self.http
        return None if proxy is None or excepted(url.raw_host or "", self.no_proxy, url.port) else proxy


def excepted(host: str, no_proxy: str, port: int | None = None) -> bool:
    """Whether `no_proxy`, with commas or blanks between its entries, has `host`, as curl reads it.

    A name has itself and all that ends with a dot and it, whether it begins with a dot or not; an address has itself, a
    network such as 10.0.0.0/8 its addresses; names are not looked up. `*` has everything. Beyond curl, an entry that
    ends with `:` and a port has that port only.
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
    """The entries without their ports, but for those of other ports."""
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
    except ValueError:  # or a port that is none
        raise ConfigError(f"{source}: expected a proxy such as http://user:password@proxy.example.com:3128") from None
    credentials = base64.b64encode(f"{user}:{url.password or ''}".encode()).decode()
    return Proxy(url.with_user(None).origin(), source, f"Basic {credentials}")
