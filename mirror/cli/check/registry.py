"""Checks what keeps `docker pull` from working, as far as this machine knows."""

from collections.abc import Iterator

from mirror.cli import ls
from mirror.cli.findings import Finding
from mirror.common.hosts import is_loopback
from mirror.config import Config
from mirror.model.errors import MirrorError
from mirror.model.status import Indexing
from mirror.wiring.registry import NO_DISK

INSECURE = (
    "server.tls_cert is empty, and container engines use plain HTTP only with a registry that they are told to (on "
    'loopback they do so anyway): dockerd by "insecure-registries", podman by insecure = true, containerd by hosts.toml'
)


def examine(config: Config) -> Iterator[Finding]:
    """Say whether the registry has what to offer, who can log in, and which images cannot be pulled."""
    if not config.registry.enabled:
        yield Finding("registry", True, "off: docker pull from the mirror is not possible", note=True)
        return
    if config.store.s3.bucket is not None and not config.store.s3.local_copy:
        yield Finding("registry", True, NO_DISK, note=True)
        return
    if config.server.tls_cert is None and not is_loopback(config.server.host):
        yield Finding("registry", True, INSECURE, note=True)
    yield from _images(config)
    yield Finding(
        "registry",
        True,
        f"docker pull HOST:{config.server.port}/{config.registry.repository}:TAG; {_LOGIN[config.auth.mode]}",
    )


_LOGIN = {
    "upstream": "docker login takes a DataRobot API token as the password",
    "tokens": "docker login takes a token of auth.tokens_file as the password",
    "open": "without docker login",
}


def _images(config: Config) -> Iterator[Finding]:
    try:
        listing = ls.read(config)
    except MirrorError:  # another check says so
        return
    for entry in listing.entries.all if listing.entries else ():
        if entry.state.state is Indexing.REFUSED:
            said = f"{entry.info.metadata.hash[:12]} cannot be pulled: {entry.state.reason}"
            yield Finding("registry", True, said, note=True)
