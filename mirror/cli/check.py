"""`pps-mirror check`: would a mirror with this configuration work here and now? Each check finds out by trying.

Nothing is changed by looking: no directory is made, no file stays behind, no image is asked for.
"""

import asyncio
import errno
import fcntl
import functools
import http.client
import os
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from yarl import URL

from mirror.access.tokens import Tokens
from mirror.cli.findings import Finding
from mirror.common import time_zone as zone
from mirror.common.units import DAY, format_duration, format_size
from mirror.config import FILE_VARIABLE, PREFIX, TOKEN_VARIABLE, Config, Server, Store, load_token
from mirror.config import Upstream as UpstreamConfig
from mirror.http.bind import in_words, listening
from mirror.http.tls import ServerTls
from mirror.images.retention import evictable
from mirror.model.caller import Caller
from mirror.model.errors import BadUpstream, ConfigError, MirrorError, UpstreamRefused
from mirror.model.metadata import ImageMetadata
from mirror.process.descriptors import DescriptorBudget
from mirror.store.base import StoreUnavailable
from mirror.store.disk.layout import Layout
from mirror.store.disk.space import Space
from mirror.upstream.client import Upstream
from mirror.upstream.proxies import Proxies

EXPIRES_SOON = 14
"""Days before its end from which a certificate is worth a note."""

SKEWED = 60.0
"""Seconds that our clock and a bucket's may differ before that is worth a note."""

_SOURCES = {
    "env": "the environment",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the AWS configuration file",
    "assume-role": "an assumed role",
    "assume-role-with-web-identity": "the service account's role",
    "container-role": "the container's role",
    "iam-role": "the machine's role",
}
"""What AWS's libraries call where credentials come from, in words."""

PROBE_SECONDS = 2.0
"""How long whoever has our port may take to say what it is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Upstream's `answer` to a request for metadata, None without an upstream, and the way it came.

    `token` is the mirror's own, which is a secret; `trouble` is what is wrong with it.
    """

    answer: ImageMetadata | MirrorError | None = None
    through: str = ""
    token: str | None = field(default=None, repr=False)
    trouble: str | None = None


def run(config: Config, environ: Mapping[str, str], file: Path | None) -> Iterator[Finding]:
    """Check one thing after another. `file` is what the configuration was read from, when the command line named it."""
    yield configuration(environ, file)
    yield from time_zone(environ)
    asked = ask(config, environ)
    yield from upstream(config, asked)
    yield from here(config, asked)


def ask(config: Config, environ: Mapping[str, str]) -> Asked:
    """Ask upstream for metadata, with the mirror's own token if it has one."""
    token, trouble = None, None
    try:
        token = load_token(config, environ)
    except ConfigError as error:
        trouble = str(error)
    if not (url := config.upstream.url):
        return Asked(token=token, trouble=trouble)
    answer, through = asyncio.run(_ask(config.upstream, url, token, environ))
    return Asked(answer, through, token, trouble)


def upstream(config: Config, asked: Asked) -> Iterator[Finding]:
    """What upstream's answer says of it, and of the token."""
    has_token = asked.token is not None
    yield _upstream(config, asked.answer, asked.through, has_token=has_token)
    if asked.trouble is not None:
        yield Finding("token", False, asked.trouble)
    else:
        yield _token(config, asked.answer, has_token=has_token)


def here(config: Config, asked: Asked) -> Iterator[Finding]:
    """All that is on our side: who may read, the stores, the certificate, the listeners."""
    answer = asked.answer
    if config.auth.mode == "tokens" and config.auth.tokens_file is not None:
        yield _tokens(config.auth.tokens_file)
    yield _store(config.store, answer if isinstance(answer, ImageMetadata) else None)
    if config.store.s3.bucket is not None:
        yield from asyncio.run(_bucket(config))
    yield _tls(config.server)
    yield _listener("server", config.server.host, config.server.port, tls=config.server.tls_cert is not None)
    yield _listener("admin", config.admin.host, config.admin.port, tls=False)
    yield from _connections(config.server)


def configuration(environ: Mapping[str, str], file: Path | None) -> Finding:
    """Where the configuration came from, which could be read."""
    path = file or environ.get(FILE_VARIABLE)
    variables = sorted(name for name in environ if name.startswith(PREFIX))
    sources = [str(path)] * bool(path) + variables
    return Finding("configuration", True, f"read from {', '.join(sources)}" if sources else "all defaults")


def time_zone(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether this machine knows the time zone that it is in; nothing when it does."""
    if (said := zone.trouble(environ)) is not None:
        yield Finding("time zone", True, said, note=True)


# Upstream and the token


async def _ask(
    config: UpstreamConfig, url: str, token: str | None, environ: Mapping[str, str]
) -> tuple[ImageMetadata | MirrorError, str]:
    """Ask for metadata; the answer, and through which proxy it came."""
    through = ""
    try:
        proxies = Proxies.of(config, environ)
        if proxy := proxies.for_url(URL(url)):
            through = f" through {proxy}"
        async with Upstream(config, url, proxies) as upstream:
            return await upstream.metadata(Caller(f"Bearer {token}" if token else None, "pps-mirror-check")), through
    except MirrorError as error:
        return error, through
    except ConfigError as error:
        return BadUpstream(str(error)), through


def _upstream(config: Config, answer: ImageMetadata | MirrorError | None, through: str, *, has_token: bool) -> Finding:
    def found(ok: bool, message: str, *, note: bool = False) -> Finding:
        return Finding("upstream", ok, f"{config.upstream.url}{through}: {message}", note)

    match answer:
        case None if config.auth.mode == "upstream":
            reason = 'auth.mode = "upstream" lets nobody in without it; set upstream.url, or auth.mode = "open"'
            return Finding("upstream", False, f"not set, and {reason}")
        case None:
            return Finding("upstream", True, "not set: the mirror serves only what is in its store", note=True)
        case ImageMetadata():
            image = f"{answer.hash[:12]} ({format_size(answer.size)}, created {answer.created:%Y-%m-%d})"
            return found(True, f"reachable; its current image is {image}")
        case UpstreamRefused(status=401 | 403) if not has_token:
            return found(True, f"reachable, asked for a token ({answer.status})")
        case UpstreamRefused(status=401 | 403):
            return found(True, f"reachable, refused the token ({answer.status})")
        case UpstreamRefused(status=404):
            return found(True, "reachable, has no image (404)", note=True)
        case UpstreamRefused():
            return found(True, f"reachable, wants to be asked less often ({answer.status})", note=True)
        case _:
            return found(False, answer.message)


def _token(config: Config, answer: ImageMetadata | MirrorError | None, *, has_token: bool) -> Finding:
    refused = isinstance(answer, UpstreamRefused) and answer.status in {401, 403}
    if not has_token:
        if config.prefetch.enabled:
            return Finding(
                "token", False, f"none, and prefetch.enabled needs one: set upstream.token_file or {TOKEN_VARIABLE}"
            )
        how = f"set upstream.token_file or {TOKEN_VARIABLE}"
        if refused and config.auth.mode != "upstream":
            return Finding("token", False, f'none, and auth.mode = "{config.auth.mode}" needs one here: {how}')
        return Finding("token", True, f"none: a fill uses its client's; for pull, {how}", note=True)
    source = "upstream.token_file" if config.upstream.token_file else TOKEN_VARIABLE
    if refused:
        return Finding("token", False, f"upstream refuses the one in {source}")
    if isinstance(answer, ImageMetadata) or (isinstance(answer, UpstreamRefused) and answer.status == 404):
        return Finding("token", True, f"upstream accepts the one in {source}")
    return Finding("token", True, f"the one in {source} could not be tried", note=True)


def _tokens(path: Path) -> Finding:
    try:
        names = {name for name, _ in Tokens.read(path).entries}
    except ConfigError as error:
        return Finding("tokens", False, str(error))
    if not names:
        return Finding("tokens", False, f"auth.tokens_file = {str(path)!r} has no token: nobody may read")
    return Finding("tokens", True, f"auth.tokens_file = {str(path)!r} lets in {', '.join(sorted(names))}")


# The store


def _store(config: Store, current: ImageMetadata | None) -> Finding:
    place = config.path
    try:
        for place in _directories(config.path):
            _try_to_write(place)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Finding("store", False, f"{place} cannot be written by user id {os.geteuid()}: {reason}")
    root = _nearest(config.path)
    free = shutil.disk_usage(root).free
    space = f"{format_size(free)} free, store.min_free = {format_size(config.min_free)}"
    wanted = _still_wanted(config.path, current) if current else 0
    lacking = None
    if current and (config.path / "images").is_dir():
        lacking = _space(config).lacking(current, wanted) if wanted else None
    elif free - wanted < config.min_free:
        wants = f"the current image needs {format_size(wanted)} more" if wanted else "no image has room"
        lacking = f"{wants}; free some space"
    if lacking:
        return Finding("store", False, f"{config.path}: {space}: {lacking}")
    state = "writable" if root == config.path else f"does not exist yet, can be made in {root}"
    return Finding("store", True, f"{config.path}: {state} by user id {os.geteuid()}; {space}")


def _nearest(path: Path) -> Path:
    """The directory itself, or the one in which it would be made."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def _directories(path: Path) -> Iterator[Path]:
    """Yield the directories that the mirror writes to."""
    yield (root := _nearest(path))
    if root == path:
        yield from (part for name in ("images", "partial", "quarantine") if (part := root / name).exists())


def _space(config: Store) -> Space:
    keep = functools.partial(evictable, keep=config.keep)
    return Space(Layout(config.path), max_size=config.max_size, min_free=config.min_free, retention=keep)


def _try_to_write(directory: Path) -> None:
    """Do what a fill does, to a file without a name."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"pps-mirror check")
        file.flush()
        os.fsync(file.fileno())
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _still_wanted(root: Path, metadata: ImageMetadata) -> int:
    """Bytes of the image that are not in the store yet."""
    if (root / "images" / metadata.hash / "image").exists():
        return 0
    partial = root / "partial" / metadata.hash
    return max(0, metadata.size - (partial.stat().st_size if partial.exists() else 0))


async def _bucket(config: Config) -> Sequence[Finding]:
    """Try all that a fill does; what is written for that is removed again."""
    from mirror.store.s3.bucket import Bucket
    from mirror.store.s3.capabilities import find_out  # see `mirror.wiring.stores`

    s3 = config.store.s3
    try:
        async with Bucket(s3) as bucket:
            source = await bucket.credentials()
            offset = abs((await bucket.now() - datetime.now(UTC)).total_seconds())
            abilities = await find_out(bucket)
    except StoreUnavailable as error:
        return [Finding("bucket", False, error.message)]
    where = f" at {s3.endpoint_url}" if s3.endpoint_url else ""
    known = f"the credentials from {_SOURCES.get(source or '', source)}"
    findings = [Finding("bucket", True, f"{s3.bucket}{where}: can be written below {s3.prefix!r} with {known}")]
    findings += [Finding("bucket", True, missing, note=True) for missing in abilities.missing]
    if offset > SKEWED:
        words = f"its clock and ours differ by {format_duration(round(offset))}; from 15 minutes on it refuses us"
        findings.append(Finding("bucket", True, words, note=True))
    return findings


# TLS and the listeners


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
    """Greet the server in memory, trusting its certificate as such; when that expires, in seconds since the epoch.

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
    """Whether there can be as many as are wanted; the service may have another limit than who runs this."""
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
        if error.errno == errno.EADDRINUSE and _is_mirror(host, port, tls=tls):
            return Finding(check, True, f"{address} is taken, by a pps-mirror that runs already", note=True)
        return Finding(check, False, f"{address} cannot be had: {in_words(error)}")
    return Finding(check, True, f"{address} is free")


def _is_mirror(host: str, port: int, *, tls: bool) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_SECONDS)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whoever it is, nothing is told to it
        connection = http.client.HTTPSConnection(host, port, timeout=PROBE_SECONDS, context=context)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().headers.get("Server", "") == "pps-mirror"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
