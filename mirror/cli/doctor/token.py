"""Examines the mirror's own token: whether its file contains anything else, and whether it gets the image as well.

A token may get the metadata but not the image, and upstream may redirect to a host that cannot be reached. So the first
bytes of the image are requested, as a fill would do it, with the mirror's own rules for redirects.
"""

import asyncio
import codecs
import re
from collections.abc import Iterator
from contextlib import suppress

import aiohttp

from mirror.cli.doctor.case import Case
from mirror.cli.doctor.user import mirrors_user
from mirror.cli.findings import Finding
from mirror.config import TOKEN_VARIABLE
from mirror.model.caller import Caller
from mirror.model.errors import BadUpstream, ConfigError, MirrorError
from mirror.model.metadata import ImageMetadata
from mirror.upstream.client import ImageResponse, Upstream
from mirror.upstream.connection import reason
from mirror.upstream.proxies import Proxies, ProxyFailed
from mirror.upstream.redirects import HostNotAllowed

FIRST = 512
"""How many bytes of the image are requested: the first header of a tar."""

SECONDS = 30.0
"""Seconds that the first bytes of the image may take, with all redirects."""

_FORMATS = ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"))


def examine(case: Case) -> Iterator[Finding]:
    """Examine the token's file, then request the first bytes of the image."""
    yield from _file(case)
    if case.url is None:
        return
    image = case.image
    if case.token is None:
        said = "not tried: the mirror has no token of its own; where upstream redirects to is not known"
        advice = f"set {TOKEN_VARIABLE} for this command: {TOKEN_VARIABLE}=... pps-mirror doctor"
        yield Finding("image", True, said, note=True, advice=advice)
        return
    if image is not None:
        yield from asyncio.run(_image(case, image))


# The file


def _file(case: Case) -> Iterator[Finding]:
    path = case.config.upstream.token_file
    if path is None:
        given = case.environ.get(TOKEN_VARIABLE, "")
        yield from (_wrong(TOKEN_VARIABLE, each) for each in beside(given.encode("utf-8", "surrogateescape")))
        return
    try:
        data = path.read_bytes()[: 64 << 10]
        mode = path.stat().st_mode
    except OSError:
        return  # loading the token has reported that
    source = f"upstream.token_file = {str(path)!r}"
    yield from (_wrong(source, each) for each in beside(data))
    if mode & 0o044 and (advice := case.deployment.keep_secret(path, mirrors_user(case.config.store.path))):
        who = "every user of this machine" if mode & 0o004 else "its group"
        said = f"{source}: {who} can read it (mode {mode & 0o777:04o})"
        yield Finding("token file", True, said, note=True, advice=advice)


def _wrong(source: str, what: str) -> Finding:
    advice = "it has to be the token alone, on one line: printf %s TOKEN > FILE"
    return Finding("token file", False, f"{source}: {what}", advice=advice)


def beside(data: bytes) -> Iterator[str]:
    """Say what a token's file contains that does not belong there, without quoting any of it."""
    if not data:
        return
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        yield "it is UTF-16, as PowerShell's > writes it"
        return
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace").strip()
    if match := re.match(r"(?i)(authorization *:|bearer\b|token\b)[ \t]", text):
        yield f"it begins with {match[1].title()!r}, which the mirror adds itself"
    elif match := re.match(r"(export +)?[A-Za-z_]\w* *=", text):
        yield "it assigns a variable, as a shell's script does"
    elif "\n" in text or "\r" in text:
        yield f"it has {len(text.split())} words on {len(text.splitlines())} lines"
    elif len(text.split()) > 1:
        yield "there is white space within"
    if text[:1] in {'"', "'", "`"} or text[-1:] in {'"', "'", "`"}:
        yield "it has quotation marks"
    if not text:
        yield "it is empty"


# The image


async def _image(case: Case, image: ImageMetadata) -> list[Finding]:
    """Request the first bytes of the image, and close the connection."""
    config = case.config.upstream
    try:
        proxies = Proxies.of(config, case.environ)
        async with asyncio.timeout(SECONDS), Upstream(config, str(config.url), proxies) as upstream:
            caller = Caller(f"Bearer {case.token}", "pps-mirror-doctor")
            async with upstream.image(caller, {"Range": f"bytes=0-{FIRST - 1}"}) as response:
                head = b""
                with suppress(aiohttp.ClientError):
                    while len(head) < FIRST and (piece := await response.answer.content.read(FIRST - len(head))):
                        head += piece
                proxy = proxies.for_url(response.answer.url)
                return list(_judged(response, image, head, f"through {proxy}" if proxy else "directly"))
    except ProxyFailed as error:
        return [
            Finding("image", False, str(error), advice="the proxy has to let the mirror to where upstream redirects")
        ]
    except (ConfigError, BadUpstream) as error:
        return [Finding("image", False, str(error), advice=_redirect_advice(error))]
    except aiohttp.ClientConnectorError as error:
        where = error.host
        advice = (
            f"upstream redirects there: a firewall, or the proxy, has to let the mirror to {where} port {error.port}"
        )
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            advice = "upstream redirects there: name that authority's certificate in upstream.ca_file as well"
        return [Finding("image", False, f"{where} cannot be reached: {reason(error)}", advice=advice)]
    except (aiohttp.ClientError, OSError) as error:
        advice = "upstream, or where it redirects to, takes the connection and does not answer; a firewall may cut it"
        return [Finding("image", False, f"no answer to the request for the image: {reason(error)}", advice=advice)]


def _redirect_advice(error: Exception) -> str:
    if isinstance(error, HostNotAllowed):
        return "if that is where upstream keeps its images: add the host to upstream.redirect_hosts, and restart"
    return "" if not isinstance(error, MirrorError) else "whoever runs upstream has to correct where it redirects to"


def _judged(response: ImageResponse, image: ImageMetadata, head: bytes, way: str) -> Iterator[Finding]:
    status = response.answer.status
    where = (
        f"{response.host}, where upstream redirects to, reached {way},"
        if response.redirected
        else f"upstream, reached {way},"
    )
    if status not in {200, 206}:
        yield _refused(status, where, redirected=response.redirected)
        return
    if head.lstrip()[:1] in {b"<", b"{"}:
        advice = "a page of a proxy's, or an error? the hash will not match, and nothing will be stored"
        yield Finding("image", False, f"{where} sends a text in its place", advice=advice)
        return
    total = _total(response)
    if total is not None and total != image.size:
        advice = "if it stays so: ask whoever runs upstream, since every fill will fail"
        said = f"{where} has {total} bytes, the metadata says {image.size}: it may be switching to another image"
        yield Finding("image", True, said, note=True, advice=advice)
    content = _format(head)
    if content is None:
        advice = "a docker archive is a tar, or one in gzip or xz; the hash decides, not this"
        said = f"{where} sends something whose beginning `docker load` does not know"
        yield Finding("image", True, said, note=True, advice=advice)
    if status == 206:
        kind = f" ({content})" if content else ""
        yield Finding("image", True, f"{where} sends it{kind}, and ranges of it: a broken transfer can go on")
        return
    advice = "something on the way (a proxy?) may take ranges away; without them it takes a line that holds"
    said = f"{where} ignores ranges: a transfer that breaks begins again at byte 0"
    yield Finding("image", True, said, note=True, advice=advice)


def _refused(status: int, where: str, *, redirected: bool) -> Finding:
    if redirected:
        advice = "a pre-signed URL is refused by a proxy on the way, or when a clock is wrong: see `clock` above"
        return Finding("image", False, f"{where} answers {status}", advice=advice)
    if status in {401, 403}:
        said = f"upstream lets the token see the metadata, and refuses it the image ({status})"
        advice = (
            "the token's user lacks the right to download the Portable Prediction Server: ask DataRobot's administrator"
        )
        return Finding("image", False, said, advice=advice)
    if status == 429:
        return Finding(
            "image", True, "upstream wants to be asked less often (429)", note=True, advice="look again later"
        )
    advice = "whoever runs upstream: its metadata is there, and its image is not"
    return Finding("image", False, f"{where} answers {status} to the request for the image", advice=advice)


def _format(head: bytes) -> str | None:
    """Return the format that the first bytes have; None for none that docker knows."""
    for magic, name in _FORMATS:
        if head.startswith(magic):
            return name
    return "tar" if head[257:262] == b"ustar" else None


def _total(response: ImageResponse) -> int | None:
    """Return the length of the whole image, if the answer tells it."""
    if response.answer.status == 200:
        return response.answer.content_length
    total = response.answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() and len(total) < 19 else None
