"""The types of the values of `[[hooks]]`. Checks are as in `mirror.config.types`."""

import re
import tomllib
from pathlib import PurePath
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from mirror.model.errors import UsageError
from mirror.model.notification import EVENTS, Kind
from mirror.model.push_target import Target

_URL = "expected an http:// or https:// URL: host, port, path and query; no user info or fragment"


def hook_tables(value: object) -> object:
    """Take `[[hooks]]`, or one text as the environment has it: a TOML array of inline tables."""
    if isinstance(value, str):
        try:
            value = tomllib.loads(f"hooks = {value.strip()}")["hooks"] if value.strip() else ()
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list | tuple):
        raise ValueError("expected tables [[hooks]] with name, events, and url, command or push each")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", value):
        raise ValueError("expected 1 to 40 small letters, digits and dashes, a dash not first")
    return value


def _url(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value) or re.search(r"[#@\\]", value):
        raise ValueError(_URL)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # whose text may quote the URL
        usable = False
    if not usable:
        raise ValueError(_URL)
    return value


def _command(value: object) -> tuple[str, ...]:
    expected = 'expected a list of texts such as ["/usr/local/bin/on-new-image", "--quiet"]; its first is a whole path'
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) and "\0" not in each for each in value):
        raise ValueError(expected)
    if value and not PurePath(value[0]).is_absolute():
        raise ValueError(expected)
    return tuple(value)


def _push(value: object) -> str | None:
    if value is None or value == "":
        return None
    try:
        return str(Target.parse(str(value)))
    except UsageError:
        raise ValueError("expected REGISTRY/REPOSITORY[:TAG], such as harbor.example.com/datarobot/pps") from None


def _events(value: object) -> tuple[Kind, ...]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) for each in value):
        raise ValueError(f"expected a list with some of {', '.join(EVENTS)}")
    for each in value:
        if each not in EVENTS:
            raise ValueError(f"expected only {', '.join(EVENTS)}")
    return tuple(dict.fromkeys(map(Kind, value)))


HookName = Annotated[str, BeforeValidator(_name)]
HookUrl = Annotated[str | None, BeforeValidator(_url), Field(repr=False)]  # of some services the path is a secret
HookCommand = Annotated[tuple[str, ...], BeforeValidator(_command)]
HookPush = Annotated[str | None, BeforeValidator(_push)]
HookEvents = Annotated[tuple[Kind, ...], BeforeValidator(_events)]
