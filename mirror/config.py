"""The configuration: every key with its type, default and limits, read from a TOML file and the environment.

Whoever holds a `Config` may rely on it: values are parsed and normalised, do not contradict each other, and an empty
text is None. Every problem is one `ConfigError` whose text is one line that a person can act on and that never quotes
what may be a secret. Nothing here touches the network or the store.
"""

import difflib
import ipaddress
import json
import logging
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from mirror.errors import ConfigError
from mirror.units import (
    DAY,
    GIB,
    HOUR,
    KIB,
    MAX_DURATION,
    MAX_SIZE,
    MINUTE,
    Window,
    format_duration,
    parse_duration,
    parse_rate,
    parse_size,
    parse_window,
)

FILE_VARIABLE: Final = "PPS_MIRROR_CONFIG"
TOKEN_VARIABLE: Final = "DATAROBOT_API_TOKEN"  # noqa: S105 - the name of a variable
PREFIX: Final = "PPS_MIRROR__"
"""What the variables of keys begin with. One underscore is not ours: Kubernetes sets PPS_MIRROR_PORT and the like."""

_UNBUILT: Final = frozenset(
    {
        "server.workers",
        "upstream.proxy",
        "upstream.max_rate",
        "upstream.rollover",
        "auth.mode=tokens",
        "auth.tokens_file",
        "store.max_size",
        "store.keep",
        "store.scrub_interval",
        "store.s3",
        "prefetch",
    }
)
"""What this version understands but does not do yet: keys, single values of a key, whole sections."""

_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound

_SECRET: Final = re.compile("token|secret|passw|credential|auth|proxy|key")
"""Names of keys, known or made up, whose value no message quotes; those that end in _file hold a path."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Number = TypeVar("_Number", int, float)


# Types of values. A check raises ValueError("expected ..."), which never quotes the value.


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
    return value if isinstance(value, Path) else Path(_text(value))


def _whole(low: int, high: int) -> BeforeValidator:
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
    try:
        for value in values:
            _host(value.removeprefix("*."))
    except ValueError:
        raise ValueError('expected hosts such as "s3.amazonaws.com" or "*.amazonaws.com", without port') from None
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


Port = Annotated[int, _whole(0, 65535)]
Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Timeout = Annotated[Duration, _between(0.001, MAX_DURATION, "a duration of 1ms or more")]
Flag = Annotated[bool, BeforeValidator(_flag)]
Host = Annotated[str, BeforeValidator(_host)]
OptionalPath = Annotated[Path | None, _or_none(_path)]
OptionalUrl = Annotated[str | None, _or_none(_http_url)]


# Sections. Sizes are bytes, durations seconds; `config.example.toml` says what each key is for.


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(_Section):
    """`[server]`: the client listener. Port 0 takes any free one."""

    host: Host = "0.0.0.0"  # noqa: S104 - serving a site is what the mirror is for
    port: Port = 8080
    tls_cert: OptionalPath = None
    tls_key: OptionalPath = None
    workers: Annotated[int, _whole(1, 1024)] = 1
    drain: Duration = MINUTE
    header_timeout: Timeout = 30.0
    max_connections: Annotated[int, _whole(1, 1_000_000)] = 4096


class Admin(_Section):
    """`[admin]`: the listener for operators."""

    host: Host = "127.0.0.1"
    port: Port = 8081
    token_file: OptionalPath = None


class Upstream(_Section):
    """`[upstream]`: where images come from. `url` is without `/api/v2`; `max_rate` in bytes per second."""

    url: Annotated[str | None, _or_none(_upstream_url)] = None
    token_file: OptionalPath = None
    ca_file: OptionalPath = None
    proxy: Annotated[
        str | None,
        _or_none(
            _matching(
                r"https?://([\w.~!$&'()*+,;=:%-]+@)?([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/?",
                "a proxy such as http://proxy.example.com:3128, with user:password@ before the host if it needs them",
            )
        ),
        Field(repr=False),  # may hold a password
    ] = None
    connect_timeout: Timeout = 10.0
    read_timeout: Timeout = MINUTE
    metadata_ttl: Duration = 30.0
    stale_if_error: Duration = 30 * DAY
    redirect_hosts: Annotated[tuple[str, ...], BeforeValidator(_texts), AfterValidator(_host_patterns)] = ()
    max_rate: Annotated[int | None, _or_none(parse_rate)] = None
    fill_retry: Duration = HOUR
    passthrough: Annotated[tuple[str, ...], BeforeValidator(_texts), AfterValidator(_routes)] = ("version/",)
    rollover: Literal["at_once", "when_stored"] = "at_once"


class Auth(_Section):
    """`[auth]`: who may read."""

    mode: Literal["upstream", "tokens", "open"] = "upstream"
    ttl: Duration = MINUTE
    tokens_file: OptionalPath = None


class S3(_Section):
    """`[store.s3]`: a bucket behind, or instead of, the local disk."""

    bucket: Annotated[
        str | None, _or_none(_matching(r"[A-Za-z0-9][\w.-]{2,62}", "a bucket name of 3 to 63 letters, digits, . _ -"))
    ] = None
    prefix: Annotated[
        str, BeforeValidator(_matching(r"([\w!.*'()-]+/)*", 'a key prefix such as "pps-mirror/", or an empty text'))
    ] = "pps-mirror/"
    endpoint_url: OptionalUrl = None
    region: Annotated[str | None, _or_none(_matching(r"[\w-]+", "a region such as eu-west-1"))] = None
    serve: Literal["proxy", "redirect"] = "proxy"
    presign_ttl: Annotated[
        Duration, _between(1, 7 * DAY, "a duration from 1s to 7d, the longest that S3 signs for")
    ] = 15 * MINUTE
    public_endpoint_url: OptionalUrl = None
    local_copy: Flag = True


class Store(_Section):
    """`[store]`: where images are kept."""

    path: Annotated[Path, BeforeValidator(_path)] = Path("/var/lib/pps-mirror")
    max_size: Annotated[Annotated[int, _between(1, MAX_SIZE, "a size above zero")] | None, _or_none(parse_size)] = None
    min_free: Size = GIB
    keep: Annotated[int, _whole(0, 1_000_000)] = 3
    holdback: Annotated[
        Size,
        _between(
            4 * KIB,
            MAX_SIZE,
            "4KiB or more: the end of the gzip stream has to stay held back, "
            "or a client could unpack a whole image that was not verified",
        ),
    ] = 64 * KIB
    scrub_interval: Timeout = 7 * DAY
    s3: S3 = S3()


class Prefetch(_Section):
    """`[prefetch]`: fills that no client waits for."""

    enabled: Flag = False
    interval: Timeout = 15 * MINUTE
    window: Annotated[Window | None, _or_none(parse_window)] = None


class Log(_Section):
    """`[log]`: what is written to standard error, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Config(_Section):
    """All of it. `Config()` is the defaults."""

    server: Server = Server()
    admin: Admin = Admin()
    upstream: Upstream = Upstream()
    auth: Auth = Auth()
    store: Store = Store()
    prefetch: Prefetch = Prefetch()
    log: Log = Log()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        server, admin = self.server, self.admin
        if server.tls_cert and not server.tls_key:
            raise _conflict("server.tls_cert", "needs server.tls_key as well")
        if server.tls_key and not server.tls_cert:
            raise _conflict("server.tls_key", "needs server.tls_cert as well")
        if not _is_loopback(admin.host) and not admin.token_file:
            raise _conflict("admin.host", "is not a loopback address, so admin.token_file is required")
        if (
            server.port
            and server.port == admin.port
            and (server.host == admin.host or _ANY & {server.host, admin.host})
        ):
            key, other = ("admin", "server") if "port" in admin.model_fields_set else ("server", "admin")
            raise _conflict(f"{key}.port", f"is {other}.port too; expected different ports")
        if self.auth.mode == "tokens" and not self.auth.tokens_file:
            raise _conflict("auth.mode", "needs auth.tokens_file as well")
        if self.upstream.url:
            parts = urlsplit(self.upstream.url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            for listener in (server, admin):
                if port == listener.port and _reaches(listener.host, parts.hostname or ""):
                    raise _conflict("upstream.url", "is the mirror's own address; expected that of DataRobot")
        return self


def _conflict(key: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("conflict", "{reason}", {"key": key, "reason": reason})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _reaches(listener: str, host: str) -> bool:
    """Whether a connection from this machine to `host` ends at a socket that is bound to `listener`."""
    if listener in _ANY:
        return host in _ANY or _is_loopback(host)
    return host == listener or {host, listener} <= {"localhost", "127.0.0.1", "::1", *_ANY}


# Reading.


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, _Section):
            yield from _keys(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KEYS: Final = tuple(_keys(Config))
"""Every key with its section: `server.host` to `log.format`."""

_SECTIONS: Final = tuple(dict.fromkeys(key.rpartition(".")[0] for key in KEYS))


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the file at `path`, else the one that `PPS_MIRROR_CONFIG` names, else none, and then the environment.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value is bad or contradicts another, or asks for what
            this version does not do yet.
    """
    if path is None and environ.get(FILE_VARIABLE):
        path = Path(environ[FILE_VARIABLE])
    given = _Given(_read(path) if path else {}, _plain(str(path or "")), {})
    given.overlay(environ)
    try:
        config = Config.model_validate(given.tree)
    except ValidationError as error:
        raise given.explain(error) from None
    if missing := unbuilt(config):
        default = _as_toml(_get(Config(), missing[0]))
        raise given.problem(
            missing[0].split("."), f" is not built yet in this version; remove it or set it to {default}"
        )
    return config


def unbuilt(config: Config) -> list[str]:
    """Name the keys that differ from their default and whose feature this version does not have yet."""

    def is_unbuilt(key: str) -> bool:
        value = _get(config, key)
        names = {key, key.rpartition(".")[0], f"{key}={value}"}
        return value != _get(Config(), key) and not _UNBUILT.isdisjoint(names)

    return [key for key in KEYS if is_unbuilt(key)]


def load_token(config: Config, environ: Mapping[str, str]) -> str | None:
    """Return the mirror's own upstream token, from `upstream.token_file`, else `DATAROBOT_API_TOKEN`, else None.

    Raises:
        ConfigError: the file cannot be read, or what was found is not one token.
    """
    if path := config.upstream.token_file:
        source = f"upstream.token_file = {_shown('upstream.token_file', str(path))}"
        try:
            text = path.read_bytes().decode("ascii", "replace")
            if path.stat().st_mode & 0o004:
                _log.warning("%s: every user of this machine can read it; expected mode 0600", source)
        except OSError as error:
            raise ConfigError(f"{source}: cannot read it: {error.strerror or type(error).__name__}") from None
    else:
        source, text = TOKEN_VARIABLE, environ.get(TOKEN_VARIABLE, "")
        if not text:
            return None
    if not re.fullmatch(r"[!-~]+", token := text.strip()):
        raise ConfigError(f"{source}: expected one token: ASCII, not empty, no white space within, no scheme before it")
    return token


def _read(path: Path) -> dict[str, Any]:
    name = _plain(str(path))
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{name}: cannot read it: {error.strerror or type(error).__name__}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{name}: not UTF-8 (at line {line}, column {column})") from None
    except tomllib.TOMLDecodeError as error:
        *lines, last = text.split("\n")
        end = f"at line {len(lines) + 1}, column {len(last) + 1}, end of document"
        raise ConfigError(f"{name}: not TOML: {str(error).replace('at end of document', end)}") from None
    except (ValueError, RecursionError):  # NUL in the path, thousands of digits or brackets
        raise ConfigError(f"{name}: expected a TOML file") from None


@dataclass(frozen=True, slots=True)
class _Given:
    """What was given and where: `tree` as TOML has it, `variables` from a key to the variable that set it."""

    tree: dict[str, Any]
    file: str
    variables: dict[str, str]

    def overlay(self, environ: Mapping[str, str]) -> None:
        """Put the variables over what the file says."""
        for variable in sorted(name for name in environ if name.startswith(PREFIX)):
            key = variable.removeprefix(PREFIX).lower().replace("__", ".")
            if key not in KEYS or variable != _variable(key):
                shown = f"{_plain(variable)} = {_shown(key, environ[variable])}"
                raise ConfigError(f"{shown}: unknown name; {_suggestion(key, KEYS, _variable)}")
            *sections, name = key.split(".")
            node: Any = self.tree
            for section in sections:
                node = node.setdefault(section, {}) if isinstance(node, dict) else None
            if isinstance(node, dict):  # else validation says what is wrong with it
                node[name] = environ[variable]
                self.variables[key] = variable

    def explain(self, error: ValidationError) -> ConfigError:
        """Put the first thing that is wrong into our words."""
        first = error.errors(include_url=False)[0]
        place = [str(part) for part in first["loc"]]
        match first["type"]:
            case "conflict":
                return self.problem(first["ctx"]["key"].split("."), f" {first['msg']}")
            case "extra_forbidden":
                return self.problem(place, f": unknown name; {_suggestion('.'.join(place), (*_SECTIONS, *KEYS), str)}")
            case "model_type":
                return self.problem(place, f": expected a section, [{'.'.join(place)}]")
            case _:
                reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
                return self.problem(place, f": {reason}")

    def problem(self, place: Sequence[str], reason: str) -> ConfigError:
        """Say where the value at `place` was set, its key, the value if it may be shown, and the reason."""
        key = ".".join(place)
        value = reduce(lambda node, name: node[name], place, self.tree)
        return ConfigError(f"{self.variables.get(key, self.file)}: {_plain(key)} = {_shown(key, value)}{reason}")


def _get(config: Config, key: str) -> object:
    return reduce(getattr, key.split("."), config)


def _variable(key: str) -> str:
    return PREFIX + key.upper().replace(".", "__")


def _suggestion(key: str, known: Sequence[str], spell: Callable[[str], str]) -> str:
    """Say what the unknown `key` was meant for: a neighbour alike, the same name elsewhere, or else the nearest."""
    key = key[:100].lower()
    section, _, name = key.rpartition(".")
    neighbours = {option.rpartition(".")[2]: option for option in known if option.rpartition(".")[0] == section}
    elsewhere = [option for option in known if option.rpartition(".")[2] == name]
    if alike := difflib.get_close_matches(name, neighbours, n=1, cutoff=0.7):
        hint = f"did you mean {spell(neighbours[alike[0]])}?"
    elif neighbours and elsewhere:
        hint = f"it belongs in another section: {' or '.join(map(spell, elsewhere))}"
    else:
        hint = f"the nearest is {spell(difflib.get_close_matches(key, known, n=1, cutoff=0)[0])}"
    if not neighbours:
        return hint
    return f"{hint} ({f'[{section}] takes' if section else 'the sections are'} {', '.join(neighbours)})"


def _shown(key: str, value: object) -> str:
    """Quote a value, cut to a sensible length, unless it is or may hold a secret: a password, a token, a signed URL."""
    if isinstance(value, dict):
        return "a section"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits or of nested tables
        return "(too large to show)"
    name = key.rpartition(".")[2].lower()
    if re.search("[@?#{]", text) or (_SECRET.search(name) and not name.endswith("_file")):
        return "(not shown)"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(text: str) -> str:
    """Make a name from outside fit for one line."""
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= 200 else f"{shown[:197]}..."


def _as_toml(value: object) -> str:
    """Write a default the way the example file does."""
    if isinstance(value, float):
        value = format_duration(value)
    return json.dumps("" if value is None else value)
