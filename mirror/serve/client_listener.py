"""What every process that serves clients does: listen to them."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mirror.config import Config
from mirror.config.reloadable import at_once
from mirror.http.access_log import log_access
from mirror.http.client_api import ClientApi, Location
from mirror.http.connection import Crowd
from mirror.http.image_response import content_disposition
from mirror.http.listener import Listener
from mirror.http.request_metrics import Accounting
from mirror.http.send import Sender
from mirror.http.tls import ServerTls
from mirror.model.metadata import ImageMetadata
from mirror.process.descriptors import DescriptorBudget
from mirror.wiring.mirror import Mirror

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""


@asynccontextmanager
async def client_listener(mirror: Mirror, tls: ServerTls | None, passed: Sequence[socket.socket]) -> AsyncIterator[int]:
    """Serve clients, of the sockets that were `passed` or of our own; on which port."""
    server = mirror.config.server
    sender = Sender(mirror.pool, SENDING_THREADS)

    def take_up(config: Config) -> None:
        client_api.pass_through(config.upstream.passthrough)
        server = config.server
        crowd = _crowd(server.max_connections)
        clients.take_up(header_timeout=server.header_timeout, crowd=crowd, drain=server.drain)

    client_api = ClientApi(
        mirror.access,
        mirror.catalog,
        mirror.library,
        mirror.upstream,
        sender,
        passthrough=mirror.config.upstream.passthrough,
        name=mirror.name,
        location=_location(mirror),
    )
    accounting = Accounting(client_api, log_access, mirror.metrics)
    clients = Listener(
        accounting,
        server.host,
        server.port,
        header_timeout=server.header_timeout,
        crowd=_crowd(server.max_connections),
        drain=server.drain,
        ended=accounting.ended,
        tls=tls.context if tls else None,
    )
    try:
        await clients.start(passed)
        mirror.parts.append(at_once(take_up))
        if tls is not None:
            mirror.parts.append(lambda config: tls.prepare(config.server, mirror.pool))
        try:
            yield clients.port
        finally:
            await clients.stop()
    finally:
        sender.close()


def _crowd(max_connections: int) -> Crowd:
    """As many clients as are wanted, or as the descriptors are enough for."""
    room = DescriptorBudget.of(max_connections)
    why = "server.max_connections" if room.lacking is None else f"{room.limit} files may be open at once"
    return Crowd(room.clients, room.beyond, f"the mirror has {room.clients} connections open already ({why})")


def _location(mirror: Mirror) -> Location | None:
    """Where clients are sent for an image that is in the bucket, when they are."""
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
