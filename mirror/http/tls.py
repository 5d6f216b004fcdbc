"""Provides TLS of the client listener: a certificate chain and its key, which can be replaced while connections run."""

import asyncio
import os
import ssl
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

from mirror.config import Server
from mirror.config.reloadable import Ready
from mirror.model.errors import ConfigError


class ServerTls:
    """TLS 1.2 and later with the certificate and key in the PEM files `cert` and `key`. Raises ConfigError.

    `context` is always the same object; a reload changes the certificate in it.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self.context = _context()
        self._pair = self._read()
        self._use(self.context, *self._pair)

    @classmethod
    def of(cls, config: Server) -> "ServerTls | None":
        """Return the listener's TLS; None for plain HTTP. Raises ConfigError."""
        if config.tls_cert is None or config.tls_key is None:
            return None
        return cls(config.tls_cert, config.tls_key)

    async def prepare(self, config: Server, pool: Executor) -> Ready:
        """Read the certificate and key again, to be used for new connections. Raises ConfigError."""
        if config.tls_cert is None or config.tls_key is None:
            raise ConfigError("server.tls_cert and server.tls_key cannot be taken back without a restart")
        renewed = await asyncio.get_running_loop().run_in_executor(pool, ServerTls, config.tls_cert, config.tls_key)

        def apply() -> (
            None
        ):  # after another context has accepted both: one that refuses the key would keep the certificate all the same
            self._cert, self._key = renewed._cert, renewed._key
            self._use(self.context, *renewed._pair)

        return Ready(apply, ("server.tls_cert",))

    def _read(self) -> tuple[bytes, bytes]:
        return _read("server.tls_cert", self._cert), _read("server.tls_key", self._key)

    def _use(self, context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
        try:
            with _as_file(cert) as cert_file, _as_file(key) as key_file:
                context.load_cert_chain(cert_file, key_file, password=lambda: "")
        except ssl.SSLError as error:
            raise ConfigError(
                f"server.tls_cert = {str(self._cert)!r} and server.tls_key are not a PEM certificate chain and its "
                f"unencrypted key: {error.reason or 'not PEM'}"
            ) from None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _read(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key} = {str(path)!r} cannot be read: {error.strerror}") from None


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Yield a file name for bytes in memory: `ssl` takes only files, and it must use the very bytes that were tried."""
    fd = os.memfd_create("pem")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
