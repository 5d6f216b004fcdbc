"""Examines the proxy: which one is used, what the variables really do, and whether it works."""

import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import closing

from yarl import URL

from mirror.cli import raw_request as wire
from mirror.cli.doctor.case import Case
from mirror.cli.findings import Finding
from mirror.cli.raw_request import RawAnswer
from mirror.common.hosts import is_address, is_loopback
from mirror.model.errors import ConfigError
from mirror.upstream.proxies import Proxies, Proxy, excepted

_NAMES = ("http_proxy", "https_proxy", "no_proxy")


def examine(case: Case) -> Iterator[Finding]:
    """Examine the variables, then ask the proxy that is used for upstream."""
    yield from _variables(case)
    if case.url is not None:
        yield from _for_upstream(case, case.url)
    yield from _bucket(case)


def _for_upstream(case: Case, url: URL) -> Iterator[Finding]:
    try:
        proxies = Proxies.of(case.config.upstream, case.environ)
    except ConfigError as error:
        yield Finding("proxy", False, str(error), advice="correct it, or unset it")
        return
    yield from _exceptions(case, url, proxies)
    proxy = proxies.for_url(url)
    if proxy is None:
        yield Finding("proxy", True, "upstream is asked directly")
    else:
        if is_loopback(str(url.raw_host)):
            yield Finding(
                "proxy",
                True,
                f"upstream is on this machine, and is asked through {proxy} all the same",
                note=True,
                advice=f"add {url.raw_host} to NO_PROXY, if the proxy is not meant for it",
            )
        yield _tried(case, proxy, url)


def _variables(case: Case) -> Iterator[Finding]:
    environ = case.environ
    for name in _NAMES:
        upper = name.upper()
        if name in environ and upper in environ and environ[name].strip() != environ[upper].strip():
            empty = ", although it is empty" if not environ[name].strip() else ""
            yield Finding(
                "proxy",
                True,
                f"{name} and {upper} differ: {name} counts{empty}",
                note=True,
                advice="set both to the same, or only one of them",
            )
    in_charge = [each for name in _NAMES[:2] for each in (name, name.upper()) if environ.get(each, "").strip()]
    if case.config.upstream.proxy and in_charge:
        yield Finding(
            "proxy", True, f"upstream.proxy counts, {', '.join(in_charge)} and NO_PROXY do not, for upstream", note=True
        )
    if not case.config.upstream.proxy and not in_charge:
        for name in ("all_proxy", "ALL_PROXY"):
            if environ.get(name, "").strip():
                advice = "set HTTPS_PROXY, or upstream.proxy"
                yield Finding("proxy", True, f"{name} is not read by the mirror", note=True, advice=advice)


# NO_PROXY


def _exceptions(case: Case, url: URL, proxies: Proxies) -> Iterator[Finding]:
    host = str(url.raw_host)
    for entry in proxies.no_proxy.replace(",", " ").split():
        if reason := useless(entry):
            better = entry.strip("\"'").partition("://")[2] or entry.strip("\"'").lstrip("*")
            shown = f"NO_PROXY: {entry!r} {reason}"
            yield Finding("proxy", True, shown, note=True, advice=f"write {better.split('/')[0]!r}")
        elif proxies.for_url(url) is not None and not is_address(host) and _covers(entry, case):
            yield Finding(
                "proxy",
                True,
                f"NO_PROXY: {entry!r} has upstream's address, but not its name, and names are not looked up for it: "
                "the proxy is asked",
                note=True,
                advice=f"add {host} to NO_PROXY, if the proxy is not meant for it",
            )


def useless(entry: str) -> str:
    """Say why an entry of NO_PROXY does not do what people expect of it; empty when it may."""
    if entry != entry.strip("\"'"):
        return "has quotation marks, which no host has"
    if "://" in entry:
        return "is a URL, and excepts nothing: hosts are compared"
    if "*" in entry and entry != "*":
        return "has a star, which stands for nothing here: a name has all below it anyway"
    if ";" in entry:
        return "has a semicolon, which separates nothing: commas or blanks do"
    if "/" in entry and not _is_network(entry):
        return "is no network of addresses, and no host has a slash"
    return ""


def _is_network(entry: str) -> bool:
    try:
        ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False
    return True


def _covers(entry: str, case: Case) -> bool:
    url = case.url
    if url is None or not _is_network(entry):
        return False
    try:
        addresses = wire.resolve(str(url.raw_host), int(url.port or 0))
    except OSError:
        return False
    return any(excepted(address.partition("%")[0], entry) for address in addresses)


# The proxy itself


def _tried(case: Case, proxy: Proxy, url: URL) -> Finding:
    """Ask the proxy for upstream: for a tunnel, or for an answer, without any credential of ours."""
    host, port = str(url.raw_host), int(url.port or 0)
    try:
        with closing(wire.to_proxy(proxy, case.config.upstream)) as connection:
            if url.scheme == "https":
                heard = wire.tunnel(connection, proxy, host, port)
            else:
                own = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
                heard = wire.ask(connection, "HEAD", str(url.origin()) + "/", url.authority, own)
    except ConfigError as error:  # upstream.ca_file
        return Finding(
            "proxy", False, str(error), advice="a file with PEM certificates that the mirror's user may read"
        )
    except ssl.SSLCertVerificationError:
        advice = "name its authority's certificate in upstream.ca_file"
        return Finding("proxy", False, f"{proxy} shows a certificate that is not trusted", advice=advice)
    except ssl.SSLError:
        advice = "most proxies are http://, also for https pages; change the proxy's URL"
        return Finding("proxy", False, f"{proxy} does not speak TLS", advice=advice)
    except TimeoutError:
        advice = "its address and port; a firewall between; whether it runs"
        return Finding("proxy", False, f"{proxy} does not answer within {wire.STEP:g} s", advice=advice)
    except OSError as error:
        said = (error.strerror or type(error).__name__).lower()
        advice = f"its address and port in {proxy.source}; whether it runs"
        return Finding("proxy", False, f"{proxy} cannot be reached: {said}", advice=advice)
    return _judged(proxy, url, heard)


def _judged(proxy: Proxy, url: URL, heard: RawAnswer) -> Finding:
    host = url.raw_host
    if heard.is_mirror:
        advice = f"set {proxy.source} to the site's proxy, or take it away; upstream.url is DataRobot's address"
        return Finding("proxy", False, f"{proxy} is a pps-mirror, which is no proxy", advice=advice)
    if heard.status is None:
        advice = f"is it a SOCKS proxy, or does its port speak TLS? {proxy.source} has to be an HTTP proxy"
        return Finding("proxy", False, f"{proxy} does not answer as an HTTP proxy does", advice=advice)
    if heard.status == 407 or (heard.status == 401 and url.scheme == "https"):
        said = "wants another user or password" if proxy.authorization else "wants a user and a password"
        advice = f"{proxy.source} = http://USER:PASSWORD@{proxy.url.authority}, special characters percent-encoded"
        return Finding("proxy", False, f"{proxy} {said} ({heard.status})", advice=advice)
    if url.scheme == "https" and heard.status >= 500:
        advice = "does the name resolve there? does it have a line to the outside? ask whoever runs it"
        return Finding("proxy", False, f"{proxy} cannot reach {host} ({heard.status})", advice=advice)
    if url.scheme == "https" and heard.status != 200:
        advice = f"have whoever runs it allow {url.authority}, and where upstream redirects to"
        return Finding("proxy", False, f"{proxy} refuses {host} ({heard.status})", advice=advice)
    return Finding("proxy", True, f"upstream is asked through {proxy}, which takes the request")


def _bucket(case: Case) -> Iterator[Finding]:
    """Note that AWS's libraries use the environment's proxy, whatever upstream.proxy says."""
    s3 = case.config.store.s3
    if s3.bucket is None or s3.endpoint_url is None:
        return
    endpoint = URL(s3.endpoint_url)
    host = str(endpoint.raw_host)
    variables = {name.lower(): value for name, value in sorted(case.environ.items()) if name.lower() in _NAMES}
    proxied = variables.get(f"{endpoint.scheme}_proxy", "").strip()
    if not proxied or excepted(host, variables.get("no_proxy", ""), endpoint.port):
        return
    yield Finding(
        "proxy",
        True,
        f"the bucket's endpoint {endpoint.authority} goes through the environment's proxy too: AWS's libraries do so",
        note=True,
        advice=f"add {host} to NO_PROXY, if it is inside",
    )
