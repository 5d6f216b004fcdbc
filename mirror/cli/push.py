"""`pps-mirror push`: puts a stored image into another registry, such as the site's own."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mirror.cli.raw_request import trusting_anybody
from mirror.common.progress import Meter
from mirror.common.trust import trust
from mirror.config import Config
from mirror.model.push_target import Target
from mirror.wiring.push import PushedImage, open_registry, push_image


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What the command line asks for. Without `verify_tls` any certificate will do, and plain http as well."""

    target: str
    image: str
    verify_tls: bool
    ca_file: Path | None


def run(config: Config, options: PushOptions, environ: Mapping[str, str], meter: Meter) -> PushedImage:
    """Push an image. Blocks. Raises UsageError, ConfigError, NotFound, StoreUnavailable, MirrorError."""
    return asyncio.run(_push(config, options, environ, meter))


async def _push(config: Config, options: PushOptions, environ: Mapping[str, str], meter: Meter) -> PushedImage:
    target = Target.parse(options.target)
    tls = trust(options.ca_file, f"--ca-file {options.ca_file}") if options.verify_tls else trusting_anybody()
    remote = await open_registry(target, environ, tls, may_be_plain=not options.verify_tls)
    return await push_image(config, target, options.image, remote, meter)
