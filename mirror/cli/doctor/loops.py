"""Finds loops: a mirror that is its own upstream or its own proxy, or several mirrors in a circle."""

import ipaddress
import socket
from collections.abc import Iterable, Iterator

from mirror.cli import raw_request as wire
from mirror.cli.doctor.case import Case
from mirror.cli.findings import Finding
from mirror.config import Config
from mirror.model.errors import LoopDetected


def examine(case: Case) -> Iterator[Finding]:
    """Compare the addresses of upstream and the proxy with our own, and look at upstream's answers."""
    url = case.url
    if url is None:
        return
    advice = "set upstream.url to the address of DataRobot: what clients were pointed at before there was a mirror"
    if key := ours(case.config, case.addresses, int(url.port or 0)):
        said = f"upstream.url leads to this mirror's own {key}.port: it would ask itself"
        yield Finding("loop", False, said, advice=advice)
    proxy = case.proxy(url)
    if proxy is not None and (key := _proxy_is_ours(case.config, str(proxy.url.raw_host), int(proxy.url.port or 0))):
        said = f"{proxy} is this mirror's own {key}.port"
        yield Finding("loop", False, said, advice=f"set {proxy.source} to the site's proxy, or take it away")
    heard = case.heard
    if isinstance(case.answer, LoopDetected) or (heard is not None and heard.status == 508):
        said = "requests come back to a mirror that sent them (508): upstream.url leads round in a circle of mirrors"
        chain = "look at upstream.url of each mirror on the way: the last one has to ask DataRobot itself"
        yield Finding("loop", False, said, advice=chain)
    elif heard is not None and heard.is_mirror:
        yield Finding("loop", True, "upstream is another pps-mirror, and no circle", note=True)


def ours(config: Config, addresses: Iterable[str], port: int) -> str | None:
    """Return which of our listeners (server or admin) has that port on one of these addresses."""
    for key, listener in (("server", config.server), ("admin", config.admin)):
        if port == 0 or listener.port != port:
            continue
        try:
            own = set(wire.resolve(listener.host, port))
        except OSError:
            continue
        everywhere = any(ipaddress.ip_address(each.partition("%")[0]).is_unspecified for each in own)
        for address in addresses:
            if address in own or (everywhere and is_here(address)):
                return key
    return None


def _proxy_is_ours(config: Config, host: str, port: int) -> str | None:
    try:
        return ours(config, wire.resolve(host, port), port)
    except OSError:
        return None


def is_here(address: str) -> bool:
    """Whether an address belongs to this machine, that is, whether a socket can be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address.partition("%")[0], 0))
    except OSError:
        return False
    return True
