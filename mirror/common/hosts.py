"""Answers questions about hosts as they are written: is it an address, is it this machine. It resolves nothing."""

import ipaddress


def is_address(host: str) -> bool:
    """Return whether the text is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a socket that is bound to `host`."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def as_url(host: str) -> str:
    """Return the host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def unmapped(address: str | None) -> str | None:
    """Return a peer's address as its owner knows it: a socket for both kinds has IPv4's as ::ffff:192.0.2.1."""
    return address and address.removeprefix("::ffff:")
