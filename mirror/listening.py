"""What every process that serves clients does: listen to them, and read again what SIGHUP says."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from mirror.app import Mirror
from mirror.config import load_token
from mirror.descriptors import Room
from mirror.http.accounting import Accounting
from mirror.http.client_api import ClientApi, Location
from mirror.http.image_response import content_disposition
from mirror.http.sending import Sender
from mirror.http.server import Listener
from mirror.http.tls import ServerTls
from mirror.log import log_access
from mirror.metadata import ImageMetadata
from mirror.process.reload import Part

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""


@asynccontextmanager
async def client_listener(mirror: Mirror, tls: ServerTls | None, passed: Sequence[socket.socket]) -> AsyncIterator[int]:
    """Serve clients, of the sockets that were `passed` or of our own; on which port."""
    server = mirror.config.server
    room = Room.of(server.max_connections)
    sender = Sender(mirror.pool, SENDING_THREADS)
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
        max_connections=room.clients,
        beyond=room.beyond,
        too_many=_too_many(room),
        drain=server.drain,
        log_access=accounting.ended,
        tls=tls.context if tls else None,
    )
    try:
        await clients.start(passed)
        try:
            yield clients.port
        finally:
            await clients.stop()
    finally:
        sender.close()


def _too_many(room: Room) -> str:
    """What those are told who come when there are as many clients as can be."""
    why = "server.max_connections" if room.lacking is None else f"{room.limit} files may be open at once"
    return f"the mirror has {room.clients} connections open already ({why})"


def _location(mirror: Mirror) -> Location | None:
    """Where clients are sent for an image that is in the bucket, when they are."""
    bucket, s3 = mirror.stores.bucket, mirror.config.store.s3
    if bucket is None or s3.serve == "proxy":
        return None

    async def location(metadata: ImageMetadata) -> str | None:
        disposition = content_disposition(metadata.filename, f"{metadata.hash[:12]}.tar.gz")
        return await bucket.location(metadata.hash, s3.presign_ttl, disposition)

    return location


def reloadable(mirror: Mirror, tls: ServerTls | None, environ: Mapping[str, str]) -> dict[str, Part]:
    """What SIGHUP reads again, by the key that names the file."""
    parts: dict[str, Part] = {}
    if mirror.config.auth.mode == "tokens":
        parts["auth.tokens_file"] = mirror.access.load
    if mirror.config.upstream.token_file is not None:

        async def load_own() -> None:
            loop = asyncio.get_running_loop()
            mirror.own.take(await loop.run_in_executor(mirror.pool, load_token, mirror.config, environ))
            mirror.library.renew()

        parts["upstream.token_file"] = load_own
    if tls is not None:
        parts["server.tls_cert"] = partial(tls.load, mirror.pool)
    return parts
