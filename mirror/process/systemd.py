"""The service manager, when there is one: what the mirror tells it, and the sockets that it hands over.

It is told that the mirror is ready, reloads, stops, and is alive (sd_notify(3)): a datagram of lines to the socket that
`NOTIFY_SOCKET` names. Whoever does not listen is not waited for. It may listen before the mirror runs, and while it is
restarted, and pass on what it listens with (sd_listen_fds(3)).
"""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mirror.common.log import event
from mirror.model.errors import ConfigError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0
"""Seconds that a message may wait for room in the service manager's queue."""

FIRST_DESCRIPTOR = 3
"""Of those that are passed (SD_LISTEN_FDS_START)."""


class ServiceManager:
    """Speaks to the socket at `address` (`@` in front: an abstract one), or to nobody when that is None.

    It wants to hear every `watchdog` seconds that the event loop runs, or never when that is None.
    """

    def __init__(self, address: str | None, watchdog: float | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._watchdog = watchdog

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "ServiceManager":
        """The one that started this process and said so in its environment."""
        address = environ.get("NOTIFY_SOCKET", "")
        if address and not address.startswith(("/", "@")):
            log.warning(
                "NOTIFY_SOCKET is neither a path nor an abstract socket: the service manager is not notified",
                extra=event("systemd.unheard"),
            )
            address = ""
        return cls(address or None, _watchdog(environ))

    def ready(self) -> None:
        """The mirror serves, after its start or a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The mirror reloads its files; `ready` says when that is over."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The mirror is about to end."""
        self._tell("STOPPING=1")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Say from the event loop, at half of the time it has for that, that it runs."""
        beating = asyncio.create_task(self._beat(), name="watchdog")
        try:
            yield
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while self._watchdog is not None:
            self._tell("WATCHDOG=1", patience=0.0)  # one that is lost is followed by another
            await asyncio.sleep(self._watchdog / 2)

    def _tell(self, *lines: str, patience: float = ANSWER_SECONDS) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
                messenger.settimeout(patience)
                messenger.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", lines[0], error, extra=event("systemd.unheard"))


@dataclass(frozen=True, slots=True)
class PassedSockets:
    """What the service manager listens with for the mirror, by FileDescriptorName=: it is used instead of binding.

    None where it listens for nobody.
    """

    clients: socket.socket | None = None
    admin: socket.socket | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "PassedSockets":
        """Take over what was passed to this process. Raises ConfigError for what cannot be served."""
        if environ.get("LISTEN_PID") != str(os.getpid()):  # nothing, or meant for another process
            return cls()
        count = environ.get("LISTEN_FDS", "")
        if not re.fullmatch("[0-9]{1,4}", count):
            raise ConfigError(f"LISTEN_FDS = {count!r}: expected how many sockets the service manager has passed")
        names = environ.get("LISTEN_FDNAMES", "").split(":") if int(count) else []
        if len(names) != int(count):
            raise ConfigError(f"LISTEN_FDNAMES names {len(names)} sockets, but LISTEN_FDS = {count} were passed")
        passed: dict[str, socket.socket] = {}
        for descriptor, name in enumerate(names, FIRST_DESCRIPTOR):
            if name not in cls.__slots__:
                raise ConfigError(f"a socket with FileDescriptorName={name!r} was passed: expected clients or admin")
            if name in passed:
                raise ConfigError(f"two sockets with FileDescriptorName={name} were passed: expected one ListenStream=")
            passed[name] = listening_socket(descriptor, name)
        return cls(**passed)


def listening_socket(descriptor: int, name: str) -> socket.socket:
    """Take over an inherited descriptor, which no child of ours inherits unasked. Raises ConfigError."""
    try:
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"the {name} socket that was passed cannot be used: {error.strerror}") from None
    if passed.family not in {socket.AF_INET, socket.AF_INET6} or passed.type != socket.SOCK_STREAM or not listens:
        raise ConfigError(f"the {name} socket that was passed does not listen for TCP: expected ListenStream=PORT")
    return passed


def _watchdog(environ: Mapping[str, str]) -> float | None:
    microseconds = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):  # meant for another process
        return None
    return int(microseconds) / 1e6 if re.fullmatch("[1-9][0-9]{0,17}", microseconds) else None
