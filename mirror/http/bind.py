"""Opens the listening sockets of every listener.

Everything uses this one function: the listeners for clients and operators, a mirror alone or with workers, `check` and
`doctor`. So whatever `check` can bind, a mirror can bind as well, and the other way round.
"""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from mirror.model.errors import AddressUnavailable, ConfigError

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel allows 4096 (net.core.somaxconn)."""

_LATER = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Errors that may pass without anyone's help: another process ends, or an interface comes up."""

_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""Errors for an address that this machine does not have."""


def listening(host: str, port: int) -> Sequence[socket.socket]:
    """Listen on each address that `host` names, all on one port; port 0 takes a free one. Raises OSError.

    No other process can listen there at the same time. Connections of a previous process, which the kernel remembers
    for a minute, do not matter (SO_REUSEADDR). The address "::" accepts IPv4 as well, because there is no other way to
    have both. When a name has several addresses, those that this machine lacks are left out, unless it lacks all.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    absent: OSError | None = None
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, address in places:
            shared_port = sockets[0].getsockname()[1] if sockets else port
            try:
                one = _listening_at(family, (address[0], shared_port, *address[2:]), v6_only=len(places) > 1)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
            else:
                sockets.append(stack.enter_context(one))
        if absent is not None and not sockets:
            raise absent
        stack.pop_all()
    return sockets


def _listening_at(family: int, address: tuple[object, ...], *, v6_only: bool) -> socket.socket:
    with ExitStack() as stack:
        one = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
        one.bind(address)
        one.listen(BACKLOG)
        stack.pop_all()
    return one


def unusable(host: str, port: int, error: OSError) -> Exception:
    """Make the error for an address that cannot be bound: AddressUnavailable if that may pass, else ConfigError."""
    said = f"cannot listen on {host} port {port}: {in_words(error)}"
    later = error.errno == socket.EAI_AGAIN if isinstance(error, socket.gaierror) else error.errno in _LATER
    return AddressUnavailable(said) if later else ConfigError(said)


def in_words(error: OSError) -> str:
    """Say why in the system's own words, without the address."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return str(error.strerror or error)
    return os.strerror(error.errno)
