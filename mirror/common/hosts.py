"""Hosts as they are written: is it an address, does it mean this machine. Nothing is looked up."""

import ipaddress


def is_address(host: str) -> bool:
    """Whether it is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what is bound to `host`."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def as_url(host: str) -> str:
    """The host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def unmapped(address: str | None) -> str | None:
    """A peer's address as its owner knows it: one of IPv4 comes as ::ffff:192.0.2.1 where both are listened to."""
    return address and address.removeprefix("::ffff:")
