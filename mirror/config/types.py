"""The types of values: what each kind of key accepts, and what that becomes.

A check raises ValueError("expected ..."), which never quotes the value: the caller knows whether that may be shown.
Values come from TOML or, always as texts, from the environment. An optional type takes an empty text for None.
"""

import ipaddress
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from mirror.common.units import (
    DAY,
    KIB,
    MAX_DURATION,
    MAX_SIZE,
    Window,
    parse_duration,
    parse_rate,
    parse_size,
    parse_window,
)
from mirror.model.image_name import is_repository

_T = TypeVar("_T")
_Number = TypeVar("_Number", int, float)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("expected a text without control characters, not empty")
    return value


def _matching(pattern: str, expected: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"expected {expected}")
        return value

    return check


def _or_none(parse: Callable[[object], _T]) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None or value == "" else parse(value))


def _path(value: object) -> Path:
    """Return a path; `~` and `~name` in front are home directories, as a shell has it. A relative one stays one."""
    if isinstance(value, Path):
        return value
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError:
        raise ValueError("expected a path; what begins with ~ has to be a home directory that is known here") from None


def whole(low: int, high: int) -> BeforeValidator:
    """Take a whole number from `low` to `high`, both inclusive."""

    def check(value: object) -> int:
        if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return value

    return BeforeValidator(check)


def _flag(value: object) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value)
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _texts(value: object) -> tuple[str, ...]:
    """Take a list of texts, or one text as the environment has it: comma separated or a TOML array."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = tomllib.loads(f"list = {value.strip()}")["list"]
        except (ValueError, RecursionError):
            value = None
    elif isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list of texts")
    return tuple(dict.fromkeys(_text(item) for item in value))


def rate_windows(value: object) -> object:
    """Take `[[upstream.rates]]`, or one text as the environment has it: "08:00-18:00=5MB/s, 18:00-22:00=20MB/s"."""
    if isinstance(value, str):
        pairs = [item.partition("=") for item in value.split(",") if item.strip()]
        value = [{"window": window.strip(), "rate": rate.strip()} for window, _, rate in pairs]
    if not isinstance(value, list | tuple):
        raise ValueError("expected tables [[upstream.rates]] with window and rate each")
    return value


def _between(low: float, high: float, expected: str) -> AfterValidator:
    def check(number: _Number) -> _Number:
        if not low <= number <= high:
            raise ValueError(f"expected {expected}")
        return number

    return AfterValidator(check)


def _host(value: object) -> str:
    """Return a host name in lower case, or an IP address in its canonical form."""
    text = _text(value).lower()
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", text):
            raise ValueError("expected a host name or an IP address, without port") from None
    return text


def _host_patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return patterns of hosts in lower case: a name, `*.` and a name, or a bare `*` for any host."""
    try:
        for value in values:
            if value != "*":
                _host(value.removeprefix("*."))
    except ValueError:
        raise ValueError(
            'expected hosts such as "s3.amazonaws.com" or "*.amazonaws.com", or "*" for any, without port'
        ) from None
    return tuple(value.lower() for value in values)


def _http_url(value: object) -> str:
    """Return an http(s) URL without a slash at its end, scheme and host in lower case."""
    expected = "expected an http:// or https:// URL: host, port and path prefix; no user info, query or fragment"
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value) or re.search(r"[?#@\\]", value):
        raise ValueError(expected)
    try:
        parts = urlsplit(value)
        host, port = _host(parts.hostname), parts.port
    except ValueError:  # whose text may quote the URL
        raise ValueError(expected) from None
    path = parts.path.rstrip("/")
    if parts.scheme not in ("http", "https") or port == 0 or {"", ".", ".."} & set(path.split("/")[1:]):
        raise ValueError(expected)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}{path}"


def _upstream_url(value: object) -> str:
    url = _http_url(value).removesuffix("/api/v2")
    if "/api/v2/" in f"{url}/":
        raise ValueError("expected a URL that ends with the host, a path prefix, or /api/v2")
    return url


def _routes(values: tuple[str, ...]) -> tuple[str, ...]:
    """Normalise paths below /api/v2/ to exactly one slash at the end."""
    routes = tuple(dict.fromkeys(f"{value.rstrip('/')}/" for value in values))
    for route in routes:
        if not re.fullmatch(r"([A-Za-z0-9._~-]+/)+", route) or {".", ".."} & set(route.split("/")):
            raise ValueError('expected paths relative to /api/v2/ such as "version/", without "/" in front or ".."')
        if route.startswith("mlops/portablePredictionServerImage/"):
            raise ValueError("expected other routes than those of the image, which the mirror itself answers")
    return routes


def _repository(value: object) -> str:
    if not isinstance(value, str) or not is_repository(value):
        raise ValueError(
            "expected a repository's name without a host, such as datarobot/datarobot-portable-prediction-api: lower "
            "case letters, digits, and single . _ - / between them"
        )
    return value


Port = Annotated[int, whole(0, 65535)]
Size = Annotated[int, BeforeValidator(parse_size)]
OptionalSize = Annotated[
    Annotated[int, _between(1, MAX_SIZE, "a size above zero")] | None,
    _or_none(parse_size),
]
_AS_RATE = PlainSerializer(lambda rate: rate and f"{rate}B/s")
_AS_TEXT = PlainSerializer(lambda window: window and str(window))
Rate = Annotated[int, BeforeValidator(parse_rate), _AS_RATE]
OptionalRate = Annotated[int | None, _or_none(parse_rate), _AS_RATE]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Timeout = Annotated[Duration, _between(0.001, MAX_DURATION, "a duration of 1ms or more")]
RequiredWindow = Annotated[Window, BeforeValidator(parse_window), _AS_TEXT]
OptionalWindow = Annotated[Window | None, _or_none(parse_window), _AS_TEXT]
Flag = Annotated[bool, BeforeValidator(_flag)]
Directory = Annotated[Path, BeforeValidator(_path)]
OptionalPath = Annotated[Path | None, _or_none(_path)]
Host = Annotated[str, BeforeValidator(_host)]
HostPatterns = Annotated[tuple[str, ...], BeforeValidator(_texts), AfterValidator(_host_patterns)]
OptionalUrl = Annotated[str | None, _or_none(_http_url)]
OptionalUpstreamUrl = Annotated[str | None, _or_none(_upstream_url)]
OptionalProxy = Annotated[
    str | None,
    _or_none(
        _matching(
            r"https?://([\w.~!$&'()*+,;=:%-]+@)?([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/?",
            "a proxy such as http://proxy.example.com:3128, with user:password@ before the host if it needs them",
        )
    ),
    Field(repr=False),  # may hold a password
]
Routes = Annotated[tuple[str, ...], BeforeValidator(_texts), AfterValidator(_routes)]
Holdback = Annotated[
    Size,
    _between(
        4 * KIB,
        MAX_SIZE,
        "4KiB or more: the end of the gzip stream has to stay held back, "
        "or a client could unpack a whole image that was not verified",
    ),
]
OptionalBucket = Annotated[
    str | None, _or_none(_matching(r"[A-Za-z0-9][\w.-]{2,62}", "a bucket name of 3 to 63 letters, digits, . _ -"))
]
KeyPrefix = Annotated[
    str, BeforeValidator(_matching(r"([\w!.*'()-]+/)*", 'a key prefix such as "pps-mirror/", or an empty text'))
]
Repository = Annotated[str, BeforeValidator(_repository)]
OptionalRegion = Annotated[str | None, _or_none(_matching(r"[\w-]+", "a region such as eu-west-1"))]
PresignDuration = Annotated[Duration, _between(1, 7 * DAY, "a duration from 1s to 7d, the longest that S3 signs for")]
