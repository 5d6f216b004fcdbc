"""Checks upstream: asks it for metadata with the mirror's own token, and judges the answer."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from yarl import URL

from mirror.cli.findings import Finding
from mirror.common.units import format_size
from mirror.config import TOKEN_VARIABLE, Config, load_token
from mirror.config import Upstream as UpstreamConfig
from mirror.model.caller import Caller
from mirror.model.errors import BadUpstream, ConfigError, MirrorError, UpstreamRefused
from mirror.model.metadata import ImageMetadata
from mirror.upstream.client import Upstream
from mirror.upstream.proxies import Proxies


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """Upstream's `answer` to a request for metadata, None without an upstream, and `through` which proxy it came.

    `token` is the mirror's own, which is a secret; `trouble` says why it cannot be used.
    """

    answer: ImageMetadata | MirrorError | None = None
    through: str = ""
    token: str | None = field(default=None, repr=False)
    trouble: str | None = None

    @property
    def image(self) -> ImageMetadata | None:
        """The current image, if upstream named it."""
        return self.answer if isinstance(self.answer, ImageMetadata) else None


def ask(config: Config, environ: Mapping[str, str]) -> UpstreamAnswer:
    """Ask upstream for metadata, with the mirror's own token if it has one."""
    token, trouble = None, None
    try:
        token = load_token(config, environ)
    except ConfigError as error:
        trouble = str(error)
    if not (url := config.upstream.url):
        return UpstreamAnswer(token=token, trouble=trouble)
    answer, through = asyncio.run(_ask(config.upstream, url, token, environ))
    return UpstreamAnswer(answer, through, token, trouble)


def examine(config: Config, asked: UpstreamAnswer) -> Iterator[Finding]:
    """Judge upstream and the token by the answer."""
    has_token = asked.token is not None
    yield _upstream(config, asked.answer, asked.through, has_token=has_token)
    if asked.trouble is not None:
        yield Finding("token", False, asked.trouble)
    else:
        yield _token(config, asked.answer, has_token=has_token)


async def _ask(
    config: UpstreamConfig, url: str, token: str | None, environ: Mapping[str, str]
) -> tuple[ImageMetadata | MirrorError, str]:
    """Ask for metadata. Returns the answer, and through which proxy it came."""
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
