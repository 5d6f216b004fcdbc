"""What every process that serves clients does: listen to them."""

import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from mirror.app import Mirror
from mirror.config import Config, Server
from mirror.errors import ConfigError
from mirror.http.accounting import Accounting
from mirror.http.client_api import ClientApi, Location
from mirror.http.image_response import content_disposition
from mirror.http.sending import Sender
from mirror.http.server import Listener
from mirror.http.tls import ServerTls
from mirror.log import log_access
from mirror.metadata import ImageMetadata
from mirror.reloadable import at_once

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""


@asynccontextmanager
async def client_listener(
    mirror: Mirror, tls: ServerTls | None, passed: socket.socket | None, *, share_port: bool = False
) -> AsyncIterator[int]:
    """Serve clients, of the socket that was `passed` or of our own; on which port."""
    server = mirror.config.server
    sender = Sender(mirror.pool, SENDING_THREADS)

    def take_up(config: Config) -> None:
        client_api.pass_through(config.upstream.passthrough)
        server = config.server
        clients.take_up(
            header_timeout=server.header_timeout, max_connections=server.max_connections, drain=server.drain
        )

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
        max_connections=server.max_connections,
        drain=server.drain,
        log_access=accounting.ended,
        tls=tls.context if tls else None,
        share_port=share_port,
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


def take_descriptors() -> None:
    """Take as many file descriptors as are allowed: the usual 1024 are fewer than `server.max_connections`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def shared_port(server: Server, passed: socket.socket | None) -> Iterator[int]:
    """Hold the address that workers will share, or the socket that was `passed`, so that nobody else can have it.

    Raises ConfigError.
    """
    if passed is not None:
        with passed:
            yield int(passed.getsockname()[1])
        return
    try:
        family, _, _, _, address = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):  # does not share: it fails when somebody listens there
            pass
        with socket.socket(family) as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(address)
            yield int(holder.getsockname()[1])
    except OSError as error:
        raise ConfigError(f"cannot listen on {server.host} port {server.port}: {error.strerror}") from None
