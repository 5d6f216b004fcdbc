"""`pps-mirror check`: would a mirror with this configuration work here and now? Each check finds out by trying.

Nothing is changed by looking: no directory is made, no file stays behind, no image is asked for.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from mirror.access.tokens import Tokens
from mirror.cli.check import listeners, store, upstream
from mirror.cli.check.upstream import UpstreamAnswer, ask
from mirror.cli.findings import Finding
from mirror.common import time_zone as zone
from mirror.config import FILE_VARIABLE, PREFIX, Config
from mirror.model.errors import ConfigError


def run(config: Config, environ: Mapping[str, str], file: Path | None) -> Iterator[Finding]:
    """Check one thing after another. `file` is what the configuration was read from, when the command line named it."""
    yield configuration(environ, file)
    yield from time_zone(environ)
    asked = ask(config, environ)
    yield from upstream.examine(config, asked)
    yield from here(config, asked)


def here(config: Config, asked: UpstreamAnswer) -> Iterator[Finding]:
    """All that is on our side: who may read, the stores, the certificate, the listeners."""
    if config.auth.mode == "tokens" and config.auth.tokens_file is not None:
        yield _tokens(config.auth.tokens_file)
    yield from store.examine(config, asked.image)
    yield from listeners.examine(config)


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


def _tokens(path: Path) -> Finding:
    try:
        names = {name for name, _ in Tokens.read(path).entries}
    except ConfigError as error:
        return Finding("tokens", False, str(error))
    if not names:
        return Finding("tokens", False, f"auth.tokens_file = {str(path)!r} has no token: nobody may read")
    return Finding("tokens", True, f"auth.tokens_file = {str(path)!r} lets in {', '.join(sorted(names))}")
