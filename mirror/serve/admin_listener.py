"""Listens for operators in the first process: builds what answers them, and closes it in order."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self
from urllib.parse import urlsplit

from mirror.admin.actions import Operator
from mirror.admin.all_processes import AllProcesses
from mirror.admin.hooks.hooks import Hooks
from mirror.admin.overview import Overview
from mirror.common.hosts import is_loopback
from mirror.config.reloadable import at_once
from mirror.http.admin_api import AdminApi
from mirror.http.admin_auth import AdminAccess
from mirror.http.connection import ConnectionLimits
from mirror.http.listener import Listener
from mirror.http.page import Page
from mirror.http.token_guesses import Guesses
from mirror.images.prefetch import Prefetcher, nothing_to_fetch
from mirror.model.errors import ConfigError
from mirror.model.status import Health
from mirror.process.descriptors import DescriptorBudget
from mirror.process.workers import ClientProcesses
from mirror.wiring.mirror import Mirror


class AdminListener:
    """Serves the status page and the admin API. A context manager that listens inside.

    It listens on the socket that was `passed`, or else on its own; `port` is where. `prefetcher` fetches images on its
    schedule, or when an operator asks. Raises ConfigError when the address cannot be bound or the token not be read.
    """

    def __init__(
        self,
        mirror: Mirror,
        processes: AllProcesses,
        health: Callable[[], Awaitable[Health]],
        clients: ClientProcesses,
        hooks: Hooks,
        passed: socket.socket | None,
    ) -> None:
        config = mirror.config
        self._host = config.admin.host if passed is None else str(passed.getsockname()[0])
        if not is_loopback(self._host) and config.admin.token_file is None:
            raise ConfigError("the admin socket that was passed is not on loopback, so admin.token_file is required")
        self.prefetcher = Prefetcher(config.prefetch, mirror.metadata_cache, mirror.library, mirror.own, mirror.metrics)
        self.port = 0
        self._mirror = mirror
        self._health = health
        self._passed = [] if passed is None else [passed]
        self._overview = Overview(
            mirror, processes, health=health, prefetch=lambda: self.prefetcher.state, clients=clients, hooks=hooks
        )
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        mirror, config = self._mirror, self._mirror.config
        fetch_now = self.prefetcher.fetch_now if mirror.upstream is not None else nothing_to_fetch
        operator = Operator(mirror, fetch_now, self._overview.expire)
        public_url = config.admin.public_url
        access = AdminAccess(self._host, public_url, mirror.pool, Guesses(mirror.metrics))
        (await access.prepare(config)).apply()
        mirror.parts += (access.prepare, at_once(lambda config: self.prefetcher.take_up(config.prefetch)))
        room = DescriptorBudget.of(config.server.max_connections).operators // 2
        listener = Listener(
            AdminApi(self._health, self._overview, operator, access, Page(urlsplit(public_url or "").path)),
            config.admin.host,
            config.admin.port,
            header_timeout=10.0,
            limits=ConnectionLimits(room, room, "the admin listener has too many connections open already"),
            drain=1.0,
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._overview.watching())
            await listener.start(self._passed)
            stack.push_async_callback(operator.close)
            stack.push_async_callback(listener.stop)
            self.port = listener.port
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()
