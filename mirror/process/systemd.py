"""Talks to the service manager, if there is one, and takes over the sockets that it passes.

The mirror tells it that it is ready, reloading, stopping and alive, by datagrams to the socket that `NOTIFY_SOCKET`
names (sd_notify(3)); it never waits for long. The service manager may listen before the mirror runs and while it
restarts, and pass the sockets on (sd_listen_fds(3)).
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
"""Seconds that a message may wait for room in the queue of the service manager."""

FIRST_DESCRIPTOR = 3
"""The number of the first descriptor that is passed (SD_LISTEN_FDS_START)."""


class ServiceManager:
    """Sends messages to the socket at `address` (an abstract one if it begins with `@`); None sends nothing.

    `watchdog` is how many seconds the service manager waits for a sign of life; None means for ever.
    """

    def __init__(self, address: str | None, watchdog: float | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._watchdog = watchdog

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "ServiceManager":
        """Return the one that the environment names."""
        address = environ.get("NOTIFY_SOCKET", "")
        if address and not address.startswith(("/", "@")):
            log.warning(
                "NOTIFY_SOCKET is neither a path nor an abstract socket: the service manager is not notified",
                extra=event("systemd.unheard"),
            )
            address = ""
        return cls(address or None, _watchdog(environ))

    def ready(self) -> None:
        """Tell that the mirror serves, after its start or a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """Tell that the mirror reloads its files; `ready` tells when that is over."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Tell that the mirror is stopping."""
        self._tell("STOPPING=1")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Tell at half of the watchdog's time, from the event loop, that the loop runs."""
        beating = asyncio.create_task(self._beat(), name="watchdog")
        try:
            yield
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while self._watchdog is not None:
            self._tell("WATCHDOG=1", patience=0.0)  # if one is lost, another follows
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
    """The listening sockets that the service manager passes, by FileDescriptorName=; None where it passes none.

    They are used instead of binding.
    """

    clients: socket.socket | None = None
    admin: socket.socket | None = None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "PassedSockets":
        """Take over the sockets that were passed to this process. Raises ConfigError for one that cannot be served."""
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
    """Take over an inherited descriptor, and keep it from our own children. Raises ConfigError."""
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
