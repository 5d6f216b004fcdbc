"""Checks whether the mirror could listen: its certificate, its ports, and how many connections it may have."""

import errno
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mirror.cli import raw_request
from mirror.cli.findings import Finding
from mirror.common.units import DAY
from mirror.config import Config, Server
from mirror.http.bind import in_words, listening
from mirror.http.tls import ServerTls
from mirror.model.errors import ConfigError
from mirror.process.descriptors import DescriptorBudget

EXPIRES_SOON = 14
"""A certificate that ends within so many days is worth a note."""

PROBE_SECONDS = 2.0
"""Seconds for each step of asking a process that has our port whether it is a mirror."""


def examine(config: Config) -> Iterator[Finding]:
    """Try the certificate and both ports, and compare the limit of open files with the configuration."""
    server, admin = config.server, config.admin
    yield _tls(server)
    yield _listener("server", server.host, server.port, tls=server.tls_cert is not None)
    yield _listener("admin", admin.host, admin.port, tls=False)
    yield from _connections(server)


def _tls(config: Server) -> Finding:
    try:
        tls = ServerTls.of(config)
    except ConfigError as error:
        return Finding("tls", False, str(error))
    if tls is None or config.tls_cert is None:
        return Finding("tls", True, "off: clients are served plain HTTP", note=True)
    try:
        expires = _handshake(tls.context, config.tls_cert)
    except ssl.SSLCertVerificationError as error:
        return Finding("tls", False, f"server.tls_cert = {str(config.tls_cert)!r}: {error.verify_message}")
    days = int((expires - time.time()) // DAY)
    until = f"{time.strftime('%Y-%m-%d', time.gmtime(expires))}, {days} days from now"
    return Finding("tls", True, f"certificate and key belong together; valid until {until}", note=days < EXPIRES_SOON)


def _handshake(server: ssl.SSLContext, certificate: Path) -> float:
    """Shake hands with the server in memory, trusting its certificate. Returns its end in seconds since 1970.

    Raises SSLCertVerificationError when the certificate is not valid now or not for servers.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (asking, answering) * 3:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return float(ssl.cert_time_to_seconds(str((asking.getpeercert() or {})["notAfter"])))


def _connections(config: Server) -> Iterator[Finding]:
    """Note when fewer clients can connect than configured; the service may have another limit than this process."""
    try:
        lacking = DescriptorBudget.of(config.max_connections).lacking
    except ConfigError as error:
        yield Finding("connections", False, str(error))
    else:
        if lacking is not None:
            yield Finding("connections", True, lacking, note=True)


def _listener(check: str, host: str, port: int, *, tls: bool) -> Finding:
    address = f"{host} port {port}"
    if port == 0:
        return Finding(check, True, f"{host}, any free port")
    try:
        for each in listening(host, port):
            each.close()
    except OSError as error:
        answer = None
        if error.errno == errno.EADDRINUSE:
            answer = raw_request.health(host, port, tls=tls, seconds=PROBE_SECONDS)
        if answer is not None and answer.is_mirror:
            return Finding(check, True, f"{address} is taken, by a pps-mirror that runs already", note=True)
        return Finding(check, False, f"{address} cannot be had: {in_words(error)}", errno=error.errno, port=port)
    return Finding(check, True, f"{address} is free")
