"""The service manager, when there is one: told that the mirror is ready, reloads, stops, and is alive (sd_notify(3)).

The protocol is a datagram of lines to the socket that `NOTIFY_SOCKET` names. Whoever does not listen is not waited for.
"""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from mirror.log import event

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds that a message may wait for room in the service manager's queue."""


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

    def _tell(self, *lines: str, patience: float = PATIENCE) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
                messenger.settimeout(patience)
                messenger.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", lines[0], error, extra=event("systemd.unheard"))


def _watchdog(environ: Mapping[str, str]) -> float | None:
    microseconds = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):  # meant for another process
        return None
    return int(microseconds) / 1e6 if re.fullmatch("[1-9][0-9]{0,17}", microseconds) else None
