"""Listens for clients, in every process that serves them: builds what answers them, and closes it in order."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Self

from mirror.common.log import Output
from mirror.config import Config
from mirror.config.reloadable import Part, at_once
from mirror.http.access_log import AccessLog
from mirror.http.callers import caller_of
from mirror.http.client_api import ClientApi, Location
from mirror.http.connection import ConnectionLimits
from mirror.http.image_response import content_disposition
from mirror.http.listener import Listener
from mirror.http.registry_api import RegistryApi
from mirror.http.request_metrics import RequestMetrics
from mirror.http.send import Sender
from mirror.http.tls import ServerTls
from mirror.model.metadata import ImageMetadata
from mirror.process.descriptors import DescriptorBudget
from mirror.wiring.mirror import Mirror

SENDING_THREADS = 2
"""How many threads send images: two keep the cores of a small machine busy."""


class ClientListener:
    """Serves clients from this process, on the sockets that were `passed` or on its own. A context manager.

    Without workers it is the only one of the `mirror.process.workers.ClientProcesses`.
    """

    count, missing = 1, 0

    def __init__(self, mirror: Mirror, tls: ServerTls | None, passed: Sequence[socket.socket], log: Output) -> None:
        self._mirror = mirror
        self._access_log = AccessLog(log)
        self._tls = tls
        self._passed = passed
        self._open = AsyncExitStack()
        self.port = 0

    async def __aenter__(self) -> Self:
        mirror, server = self._mirror, self._mirror.config.server
        async with AsyncExitStack() as stack:
            sender = Sender(mirror.pool, SENDING_THREADS)
            stack.callback(sender.close)
            registry = None
            if mirror.registry is not None:
                registry = RegistryApi(
                    mirror.registry,
                    mirror.access,
                    mirror.library,
                    sender,
                    mirror.metrics,
                    partial(caller_of, name=mirror.name),
                )
                stack.callback(registry.close)
            api = ClientApi(
                mirror.access,
                mirror.metadata_cache,
                mirror.library,
                mirror.upstream,
                sender,
                passthrough=mirror.config.upstream.passthrough,
                name=mirror.name,
                location=_location(mirror),
                registry=registry,
            )
            metrics = RequestMetrics(api, self._access_log, mirror.metrics)
            listener = Listener(
                metrics,
                server.host,
                server.port,
                header_timeout=server.header_timeout,
                limits=_limits(server.max_connections),
                drain=server.drain,
                ended=metrics.ended,
                tls=self._tls.context if self._tls else None,
            )
            await listener.start(self._passed)
            stack.push_async_callback(listener.stop)
            self.port = listener.port
            mirror.parts += self._parts(api, listener)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def toggle_debugging(self) -> None:
        """See `ClientProcesses`: there is no other process."""

    def _parts(self, api: ClientApi, listener: Listener) -> Iterator[Part]:
        """Yield what applies another configuration."""

        def take_up(config: Config) -> None:
            server = config.server
            api.pass_through(config.upstream.passthrough)
            limits = _limits(server.max_connections)
            listener.take_up(header_timeout=server.header_timeout, limits=limits, drain=server.drain)

        yield at_once(take_up)
        if (tls := self._tls) is not None:
            yield lambda config: tls.prepare(config.server, self._mirror.pool)


def _limits(max_connections: int) -> ConnectionLimits:
    """Return the configured limit, or a lower one when there are too few descriptors for it."""
    room = DescriptorBudget.of(max_connections)
    why = "server.max_connections" if room.lacking is None else f"{room.limit} files may be open at once"
    return ConnectionLimits(
        room.clients, room.beyond, f"the mirror has {room.clients} connections open already ({why})"
    )


def _location(mirror: Mirror) -> Location | None:
    """Return what finds the URL of an image in the bucket, for redirecting clients there; None without a bucket."""
    bucket = mirror.stores.bucket
    if bucket is None:
        return None

    async def location(metadata: ImageMetadata) -> str | None:
        s3 = mirror.config.store.s3
        if s3.serve == "proxy":
            return None
        disposition = content_disposition(metadata.filename, f"{metadata.hash[:12]}.tar.gz")
        return await bucket.location(metadata.hash, s3.presign_ttl, disposition)

    return location
