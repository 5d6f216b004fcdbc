"""`pps-mirror push`: puts a stored image into another registry, such as the site's own."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mirror.common.progress import Meter
from mirror.config import Config
from mirror.model.errors import ConfigError
from mirror.model.push_target import Target
from mirror.wiring.push import PushedImage, push_image


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What the command line asks for. Without `verify_tls` any certificate will do, and plain http as well."""

    target: str
    image: str
    verify_tls: bool
    ca_file: Path | None


def run(config: Config, options: PushOptions, environ: Mapping[str, str], meter: Meter) -> PushedImage:
    """Push an image. Blocks. Raises UsageError, ConfigError, NotFound, StoreUnavailable, MirrorError."""
    pushing = push_image(
        config,
        Target.parse(options.target),
        options.image,
        environ,
        meter,
        ca_file=options.ca_file,
        verify_tls=options.verify_tls,
    )
    try:
        return asyncio.run(pushing)
    except ConfigError as error:
        raise ConfigError(re.sub("^ca_file ", "--ca-file ", str(error))) from None
