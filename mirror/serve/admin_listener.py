"""The operators' side of the first process: what it tells them, and what they may have it do."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from mirror.admin.actions import Operator
from mirror.admin.overview import Overview
from mirror.admin.worker_report import AllProcesses
from mirror.common.hosts import is_loopback
from mirror.config.reloadable import at_once
from mirror.http.admin_api import AdminApi
from mirror.http.admin_auth import AdminAccess
from mirror.http.connection import Crowd
from mirror.http.listener import Listener
from mirror.http.page import Page
from mirror.http.token_guesses import Guesses
from mirror.images.prefetch import Prefetcher, nothing_to_fetch
from mirror.model.errors import ConfigError
from mirror.model.status import Health
from mirror.process.descriptors import DescriptorBudget
from mirror.process.workers import ClientProcesses
from mirror.wiring.mirror import Mirror


@dataclass(frozen=True, slots=True)
class Managed:
    """A mirror that operators can look at: on which `port`, and what fetches ahead for it."""

    port: int
    prefetcher: Prefetcher


@asynccontextmanager
async def managed(
    mirror: Mirror,
    processes: AllProcesses,
    health: Callable[[], Awaitable[Health]],
    clients: ClientProcesses,
    passed: socket.socket | None,
) -> AsyncIterator[Managed]:
    """Listen to operators, on the socket that was `passed` or our own.

    Raises ConfigError when their address cannot be had, or their token not be read.
    """
    config = mirror.config
    host = config.admin.host if passed is None else str(passed.getsockname()[0])
    if not is_loopback(host) and config.admin.token_file is None:
        raise ConfigError("the admin socket that was passed is not on loopback, so admin.token_file is required")
    prefetcher = Prefetcher(config.prefetch, mirror.catalog, mirror.library, mirror.own, mirror.metrics)
    overview = Overview(mirror, processes, health=health, prefetch=lambda: prefetcher.state, clients=clients)
    fetch_now = prefetcher.fetch_now if mirror.upstream is not None else nothing_to_fetch
    operator = Operator(mirror, fetch_now, overview.expire)
    public_url = config.admin.public_url
    access = AdminAccess(host, public_url, mirror.pool, Guesses(mirror.metrics))
    (await access.prepare(config)).apply()
    mirror.parts += (access.prepare, at_once(lambda config: prefetcher.take_up(config.prefetch)))
    room = DescriptorBudget.of(config.server.max_connections)
    listener = Listener(
        AdminApi(health, overview, operator, access, Page(urlsplit(public_url or "").path)),
        config.admin.host,
        config.admin.port,
        header_timeout=10.0,
        crowd=Crowd(
            room.operators // 2, room.operators // 2, "the admin listener has too many connections open already"
        ),
        drain=1.0,
    )
    async with overview.watching():
        await listener.start([] if passed is None else [passed])
        try:
            yield Managed(listener.port, prefetcher)
        finally:
            await listener.stop()
            await operator.close()
