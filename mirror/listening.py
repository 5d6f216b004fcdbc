"""What every process that serves clients does: listen to them, and read again what SIGHUP says."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from mirror.app import Mirror
from mirror.config import Server, load_token
from mirror.errors import ConfigError
from mirror.http.accounting import Accounting
from mirror.http.client_api import ClientApi, Location
from mirror.http.image_response import content_disposition
from mirror.http.sending import Sender
from mirror.http.server import Listener
from mirror.http.tls import ServerTls
from mirror.log import log_access
from mirror.metadata import ImageMetadata
from mirror.process.reload import Part
from mirror.store.base import StoreUnavailable

SENDING_THREADS = 2
"""Threads that send images from memory: two keep the cores of a small machine busy."""


@asynccontextmanager
async def client_listener(
    mirror: Mirror, tls: ServerTls | None, passed: socket.socket | None, *, share_port: bool = False
) -> AsyncIterator[int]:
    """Serve clients, of the socket that was `passed` or of our own; on which port."""
    server = mirror.config.server
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
        max_connections=server.max_connections,
        drain=server.drain,
        log_access=accounting.ended,
        tls=tls.context if tls else None,
        share_port=share_port,
    )
    try:
        await clients.start(passed)
        try:
            yield clients.port
        finally:
            await clients.stop()
    finally:
        sender.close()


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
    if (bucket := mirror.stores.bucket) is not None:

        async def find_credentials() -> bool:
            try:
                return await bucket.renew()
            except StoreUnavailable as error:
                raise ConfigError(error.message) from None

        parts["store.s3"] = find_credentials
    if tls is not None:
        parts["server.tls_cert"] = partial(tls.load, mirror.pool)
    return parts


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
