"""Accepts connections from listening sockets, one at a time.

asyncio's own server is not used. It accepts all that wait at once: one of several processes that share a socket would
get them all, and many clients at once would take the descriptors that running downloads need before anything could
refuse them. When no descriptor is left, it logs a traceback for each attempt.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence

from mirror.common.log import event
from mirror.common.tls_buffer import begin_small_tls

PAUSE = 0.5
"""Seconds to pause when no descriptor is left for another connection."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger(__name__)


class Acceptor:
    """Accepts connections from `sockets`, which it owns. A TLS handshake may take `handshake` seconds."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        protocol: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
        handshake: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._protocol = protocol
        self._tls = tls
        self._handshake = handshake
        self._beginning: set[asyncio.Task[None]] = set()
        self._exhausted = False
        self._resuming: asyncio.TimerHandle | None = None
        for each in sockets:
            each.setblocking(False)
        self._resume()

    async def close(self) -> None:
        """Stop accepting. Every accepted connection has its protocol, or is in its TLS handshake, when this returns."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._pause()
        for each in self._sockets:
            each.close()
        if self._tls is None and self._beginning:
            await asyncio.wait(self._beginning)

    def _resume(self) -> None:
        self._resuming = None
        for each in self._sockets:
            self._loop.add_reader(each, self._accept, each)

    def _pause(self) -> None:
        for each in self._sockets:
            self._loop.remove_reader(each)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                return  # another process accepted it first, or the client has left
            if not self._exhausted:
                log.error("no connection can be accepted: %s", error.strerror, extra=event("listener.exhausted"))
            self._exhausted = True
            self._pause()
            self._resuming = self._loop.call_later(PAUSE, self._resume)
            return
        self._exhausted = False
        connection.setblocking(False)
        task = self._loop.create_task(self._begin(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(self._protocol, connection)
            else:
                await begin_small_tls(connection, self._protocol(), self._tls, self._handshake)
        except OSError as error:  # ssl.SSLError and TimeoutError are
            log.debug("a connection ended before it could be used: %s", type(error).__name__)
