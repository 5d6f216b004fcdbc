"""Checks what keeps `docker pull` from working, as far as this machine knows."""

from collections.abc import Iterator

from mirror.cli import ls
from mirror.cli.findings import Finding
from mirror.common.hosts import is_loopback
from mirror.config import Config
from mirror.model.errors import MirrorError
from mirror.model.status import Indexing
from mirror.wiring.registry import NO_DISK

_LOGIN = {
    "upstream": "docker login takes a DataRobot API token as the password",
    "tokens": "docker login takes a token of auth.tokens_file as the password",
    "open": "without docker login",
}


def examine(config: Config) -> Iterator[Finding]:
    """Say whether the registry has what to offer, who can log in, and which images cannot be pulled."""
    if not config.registry.enabled:
        yield _note("docker pull from the mirror is off: registry.enabled = false")
        return
    if config.store.s3.bucket is not None and not config.store.s3.local_copy:
        yield _note(NO_DISK, "store.s3.local_copy = true, and a restart; or registry.enabled = false")
        return
    if config.server.tls_cert is None and not is_loopback(config.server.host):
        yield _note(
            "server.tls_cert is empty, and container engines use plain HTTP only with a registry that they are told to",
            'a certificate; or "insecure-registries" of dockerd, insecure = true of podman, hosts.toml of containerd: '
            "docs/registry.md",
        )
    name = f"HOST:{config.server.port}/{config.registry.repository}:TAG"
    yield Finding("registry", True, f"docker pull {name}, {_LOGIN[config.auth.mode]}")
    yield from _images(config)


def _images(config: Config) -> Iterator[Finding]:
    try:
        listing = ls.read(config)
    except MirrorError:  # another check says so
        return
    for entry in listing.entries.all if listing.entries else ():
        if entry.state.state is Indexing.REFUSED:
            yield _note(
                f"{entry.info.metadata.hash[:12]} cannot be pulled: {entry.state.reason}",
                "it can still be downloaded; is it what docker save or DataRobot made?",
            )


def _note(message: str, advice: str = "") -> Finding:
    return Finding("registry", True, message, note=True, advice=advice)
