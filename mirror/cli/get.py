"""`pps-mirror get`: downloads an image into a file, for nodes without good tools.

The credential goes only to the origin that was asked, never to one that it redirects to.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mirror.cli.container_engines import Loader
from mirror.cli.image_download import ImageDownload, ImageFile
from mirror.common.progress import Meter
from mirror.config import Config, load_token
from mirror.config import Upstream as UpstreamConfig
from mirror.model.caller import Caller
from mirror.model.errors import ConfigError, MirrorError, UsageError
from mirror.model.metadata import is_hash
from mirror.upstream.client import IMAGE, Upstream
from mirror.upstream.proxies import Proxies

CURRENT = "current"
"""Stands in a URL for the hash of the current image."""

_CURRENT = re.compile(r"(/api/v2)?/mlops/portablePredictionServerImage(/metadata)?/?$")
_STORED = re.compile(r"/mirror/v1/images(/(?P<hash>[^/]+)(/metadata)?)?/?$")
_OPTIONS = {"upstream.ca_file": "--ca-file", "upstream.token_file": "--token-file", "upstream.url": "URL"}


@dataclass(frozen=True, slots=True)
class GetOptions:
    """What the command line asks for. `file` is the file or directory; `retry_for` limits seconds without progress."""

    url: str
    file: Path | None
    token_file: Path | None
    ca_file: Path | None
    retry_for: float


def run(options: GetOptions, loader: Loader | None, environ: Mapping[str, str], meter: Meter) -> ImageFile:
    """Get the image, then load it if there is a `loader`. Blocks.

    Raises UsageError, ConfigError, or MirrorError when it cannot be had; then the bytes so far are kept, to be resumed.
    """
    got = asyncio.run(_get(options, environ, meter))
    if loader is not None:
        for line in loader.load(got.file, meter).splitlines():
            meter.say(line)
    return got


async def _get(options: GetOptions, environ: Mapping[str, str], meter: Meter) -> ImageFile:
    base, image_hash = _parsed(options.url)
    wanted = {"url": base, "fill_retry": options.retry_for}
    wanted |= {"token_file": str(options.token_file or ""), "ca_file": str(options.ca_file or "")}
    try:
        config = UpstreamConfig.model_validate(wanted)
    except ValidationError as error:
        raise UsageError(f"URL: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    if config.url is None:
        raise UsageError("URL: expected that of a mirror or of DataRobot, such as http://mirror:8080")
    try:
        token = load_token(Config(upstream=config), environ)
        path = f"/mirror/v1/images/{image_hash}/" if image_hash else IMAGE
        async with Upstream(config, config.url, Proxies.of(config, environ), image=path) as upstream:
            caller = Caller(f"Bearer {token}" if token else None, "pps-mirror-get")
            download = ImageDownload(
                upstream, path, image_hash, caller, meter, file=options.file, retry_for=options.retry_for
            )
            return await download.run()
    except ConfigError as error:
        raise ConfigError(_in_our_words(str(error))) from None
    except MirrorError as error:
        raise MirrorError(_in_our_words(error.message)) from None


def _parsed(url: str) -> tuple[str, str | None]:
    """Split a URL, which may be that of the image, of its metadata or of a list, into the server's address and a hash.

    The hash is None unless the URL names one of a mirror's stored images. Raises UsageError.
    """
    place = re.split(r"[?#]", url, maxsplit=1)[0]
    if (stored := _STORED.search(place)) is None:
        return _CURRENT.sub("", place), None
    name = stored["hash"] or CURRENT
    if name != CURRENT and not is_hash(name):
        raise UsageError(f"URL: expected the whole hash of an image, or {CURRENT}, in place of {name!r}")
    return place[: stored.start()], None if name == CURRENT else name


def _in_our_words(text: str) -> str:
    """Replace the keys of the mirror's configuration by the options of this command."""
    for key, option in _OPTIONS.items():
        text = text.replace(key, option)
    return text
