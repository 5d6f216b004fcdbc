"""`pps-mirror check`: runs all checks, in the order in which a mirror would need what they try.

They change nothing: no directory is made, no file stays behind, no image is requested.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mirror.access.tokens import Tokens
from mirror.admin.hooks.webhook import load_keys, trusting
from mirror.cli.check import listeners, registry, store, upstream
from mirror.cli.check.upstream import UpstreamAnswer, ask
from mirror.cli.findings import Finding
from mirror.common import time_zone as zone
from mirror.config import FILE_VARIABLE, PREFIX, Config, Hook
from mirror.model.errors import ConfigError


def run(config: Config, environ: Mapping[str, str], file: Path | None) -> Iterator[Finding]:
    """Run one check after another. `file` is the configuration's file if the command line named it."""
    yield configuration(environ, file)
    yield from time_zone(environ)
    asked = ask(config, environ)
    yield from upstream.examine(config, asked)
    yield from here(config, asked)


def here(config: Config, asked: UpstreamAnswer) -> Iterator[Finding]:
    """Check everything on our side: the list of tokens, the stores, the certificate, the listeners, docker pull."""
    if config.auth.mode == "tokens" and config.auth.tokens_file is not None:
        yield _tokens(config.auth.tokens_file)
    yield from store.examine(config, asked.image)
    yield from listeners.examine(config)
    yield from registry.examine(config)
    yield from map(_hook, config.hooks)


def configuration(environ: Mapping[str, str], file: Path | None) -> Finding:
    """Say where the configuration came from."""
    path = file or environ.get(FILE_VARIABLE)
    variables = sorted(name for name in environ if name.startswith(PREFIX))
    sources = [str(path)] * bool(path) + variables
    return Finding("configuration", True, f"read from {', '.join(sources)}" if sources else "all defaults")


def time_zone(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Note when this machine does not know its time zone."""
    if (said := zone.trouble(environ)) is not None:
        yield Finding("time zone", True, said, note=True)


def _hook(hook: Hook) -> Finding:
    """Check what a hook needs here, and send nothing."""
    said = f"hook {hook.name}"
    if hook.command:
        runs = os.access(hook.command[0], os.X_OK) and not Path(hook.command[0]).is_dir()
        return Finding("hooks", runs, f"{said}: {hook.command[0]} {'can' if runs else 'cannot'} be run")
    try:
        signs = bool(load_keys(hook))
        trusting(hook)
    except ConfigError as error:
        return Finding("hooks", False, str(error))
    if hook.push:
        return Finding(
            "hooks", True, f"{said} pushes to {hook.push}; pps-mirror hooks test {hook.name} tries to get in"
        )
    signed = "signed" if signs else "not signed"
    return Finding("hooks", True, f"{said} is set up, {signed}; pps-mirror hooks test {hook.name} tries it")


def _tokens(path: Path) -> Finding:
    try:
        names = {name for name, _ in Tokens.read(path).entries}
    except ConfigError as error:
        return Finding("tokens", False, str(error))
    if not names:
        return Finding("tokens", False, f"auth.tokens_file = {str(path)!r} has no token: nobody may read")
    return Finding("tokens", True, f"auth.tokens_file = {str(path)!r} lets in {', '.join(sorted(names))}")
