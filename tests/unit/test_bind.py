"""Listening: at each address of a name that this machine has, on one port, or at none; and which failures may pass."""

import errno
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from mirror.http.bind import listening, unusable
from mirror.model.errors import AddressUnavailable, ConfigError
from tests.support.processes import free_port

ABSENT = "192.0.2.1"
"""Of a network that is for documents only (RFC 5737)."""

Name = Callable[..., None]


NAME = "a.name"


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Name:
    """Give `NAME` these addresses."""
    real = socket.getaddrinfo

    def name(*addresses: str) -> None:
        def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> Any:
            if host != NAME:
                return real(host, port, *arguments, **options)
            return [(_family(each), socket.SOCK_STREAM, 6, "", _place(each, port)) for each in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return name


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _place(address: str, port: int) -> tuple[object, ...]:
    return (address, port, 0, 0) if ":" in address else (address, port)


def places(host: str, port: int = 0) -> list[tuple[str, int]]:
    """Where it is listened to; connections are made there, and nobody listens any more when this returns."""
    sockets = listening(host, port)
    try:
        found = [each.getsockname()[:2] for each in sockets]
        for place in found:
            socket.create_connection(place, timeout=20).close()
        return found
    finally:
        for each in sockets:
            each.close()


def test_each_address_of_a_name_is_listened_to_on_one_port(name: Name) -> None:
    addresses = ["127.0.0.1", "127.0.0.2", *(["::1"] if socket.has_dualstack_ipv6() else [])]
    name(*addresses, "127.0.0.1")
    found = places(NAME)
    assert [address for address, _ in found] == addresses
    assert len({port for _, port in found}) == 1


@pytest.mark.parametrize("addresses", [(ABSENT, "127.0.0.1"), ("127.0.0.1", ABSENT)])
def test_an_address_that_the_machine_does_not_have_is_left_out(name: Name, addresses: tuple[str, ...]) -> None:
    name(*addresses)
    assert [address for address, _ in places(NAME)] == ["127.0.0.1"]


def test_a_name_without_an_address_of_this_machine_cannot_be_listened_to(name: Name) -> None:
    name(ABSENT)
    with pytest.raises(OSError, match="assign requested address") as refused:
        listening(NAME, 0)
    assert refused.value.errno == errno.EADDRNOTAVAIL


def test_where_one_address_is_taken_none_is_kept(name: Name) -> None:
    port = free_port()  # at 127.0.0.1, and nobody else gets it
    with closing(socket.create_server(("127.0.0.2", port))):
        name("127.0.0.1", "127.0.0.2")
        with pytest.raises(OSError, match="in use"):
            listening(NAME, port)
        name("127.0.0.1")
        assert places(NAME, port) == [("127.0.0.1", port)]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.EADDRINUSE, "at 127.0.0.1"), AddressUnavailable, "Address already in use"),
        (OSError(errno.EADDRNOTAVAIL, ""), AddressUnavailable, "Cannot assign requested address"),
        (OSError(errno.EMFILE, ""), AddressUnavailable, "Too many open files"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), AddressUnavailable, "Temporary failure"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), ConfigError, "Name or service not known"),
        (OSError(errno.EACCES, ""), ConfigError, "Permission denied"),
        (OSError(errno.EAFNOSUPPORT, ""), ConfigError, "Address family not supported by protocol"),
    ],
)
def test_what_may_be_well_later_is_told_from_what_somebody_has_to_mend(
    error: OSError, kind: type[Exception], said: str
) -> None:
    told = unusable(NAME, 8080, error)
    assert (type(told), str(told)) == (kind, f"cannot listen on {NAME} port 8080: {said}")
