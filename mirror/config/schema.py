"""The configuration as a tree of sections, with every key's default and what must not be set together.

Sizes are bytes, durations seconds; `config.example.toml` says what each key is for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from mirror.common.hosts import is_loopback
from mirror.common.units import DAY, GIB, HOUR, KIB, MINUTE
from mirror.config.hook_types import HookCommand, HookEvents, HookName, HookPush, HookUrl, hook_tables
from mirror.config.types import (
    Directory,
    Duration,
    Flag,
    Holdback,
    Host,
    HostPatterns,
    KeyPrefix,
    OptionalBucket,
    OptionalPath,
    OptionalProxy,
    OptionalRate,
    OptionalRegion,
    OptionalSize,
    OptionalUpstreamUrl,
    OptionalUrl,
    OptionalWindow,
    Port,
    PresignDuration,
    Rate,
    Repository,
    RequiredWindow,
    Routes,
    Size,
    Timeout,
    rate_windows,
    whole,
)
from mirror.model.notification import Kind

_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


class Section(BaseModel):
    """Base of all sections: they are frozen, and refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(Section):
    """`[server]`: the client listener. Port 0 takes any free one."""

    host: Host = "0.0.0.0"  # noqa: S104 - serving a site is what the mirror is for
    port: Port = 8080
    tls_cert: OptionalPath = None
    tls_key: OptionalPath = None
    workers: Annotated[int, whole(1, 1024)] = 1
    drain: Duration = MINUTE
    header_timeout: Timeout = 30.0
    max_connections: Annotated[int, whole(1, 1_000_000)] = 4096


class Admin(Section):
    """`[admin]`: the listener for operators, and how they reach it if that is through a proxy."""

    host: Host = "127.0.0.1"
    port: Port = 8081
    token_file: OptionalPath = None
    public_url: OptionalUrl = None


class RateWindow(Section):
    """`[[upstream.rates]]`: another rate in a part of the day, in bytes per second."""

    window: RequiredWindow
    rate: Rate


class Upstream(Section):
    """`[upstream]`: where images come from. `url` is without `/api/v2`; `max_rate` in bytes per second.

    In the first of `rates` whose window is open, its rate holds instead.
    """

    url: OptionalUpstreamUrl = None
    token_file: OptionalPath = None
    ca_file: OptionalPath = None
    proxy: OptionalProxy = None
    connect_timeout: Timeout = 10.0
    read_timeout: Timeout = MINUTE
    connections: Annotated[int, whole(1, 16)] = 4
    metadata_ttl: Duration = 30.0
    stale_if_error: Duration = 30 * DAY
    redirect_hosts: HostPatterns = ()
    max_rate: OptionalRate = None
    rates: Annotated[tuple[RateWindow, ...], BeforeValidator(rate_windows)] = ()
    fill_retry: Duration = HOUR
    passthrough: Routes = ("version/",)
    rollover: Literal["at_once", "when_stored"] = "at_once"


class Auth(Section):
    """`[auth]`: who may read."""

    mode: Literal["upstream", "tokens", "open"] = "upstream"
    ttl: Duration = MINUTE
    tokens_file: OptionalPath = None


class S3(Section):
    """`[store.s3]`: a bucket behind, or instead of, the local disk."""

    bucket: OptionalBucket = None
    prefix: KeyPrefix = "pps-mirror/"
    endpoint_url: OptionalUrl = None
    region: OptionalRegion = None
    serve: Literal["proxy", "redirect"] = "proxy"
    presign_ttl: PresignDuration = 15 * MINUTE
    public_endpoint_url: OptionalUrl = None
    local_copy: Flag = True
    max_size: OptionalSize = None
    keep: Annotated[int, whole(0, 1_000_000)] = 3


class Store(Section):
    """`[store]`: where images are kept."""

    path: Directory = Path("/var/lib/pps-mirror")
    max_size: OptionalSize = None
    min_free: Size = GIB
    keep: Annotated[int, whole(0, 1_000_000)] = 3
    holdback: Holdback = 64 * KIB
    scrub_interval: Timeout = 7 * DAY
    s3: S3 = S3()


class Prefetch(Section):
    """`[prefetch]`: fills that no client waits for."""

    enabled: Flag = False
    interval: Timeout = 15 * MINUTE
    window: OptionalWindow = None


class Registry(Section):
    """`[registry]`: stored images as a read-only container registry."""

    enabled: Flag = True
    repository: Repository = "datarobot/datarobot-portable-prediction-api"


class Log(Section):
    """`[log]`: what is written to standard error, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Hook(Section):
    """`[[hooks]]`: a `url` that is told, a `command` that is run, or where to `push`, when one of the `events` happens.

    A push goes to another registry, of an image that can be pulled here.
    """

    name: HookName
    events: HookEvents = (Kind.IMAGE_INDEXED,)
    url: HookUrl = None
    command: HookCommand = ()
    push: HookPush = None
    secret_file: OptionalPath = None
    ca_file: OptionalPath = None
    timeout: Timeout = 30.0


class Config(Section):
    """The whole configuration. `Config()` has all defaults."""

    hooks: Annotated[tuple[Hook, ...], BeforeValidator(hook_tables)] = ()

    server: Server = Server()
    admin: Admin = Admin()
    upstream: Upstream = Upstream()
    auth: Auth = Auth()
    store: Store = Store()
    prefetch: Prefetch = Prefetch()
    registry: Registry = Registry()
    log: Log = Log()

    @model_validator(mode="after")
    def _check_bucket(self) -> Self:
        for key in ("serve", "local_copy", "max_size", "keep"):
            if not self.store.s3.bucket and getattr(self.store.s3, key) != getattr(S3(), key):
                raise _conflict(f"store.s3.{key}", "needs store.s3.bucket as well")
        return self

    @model_validator(mode="after")
    def _check_hooks(self) -> Self:
        for number, hook in enumerate(self.hooks):
            if hook.name in {other.name for other in self.hooks[:number]}:
                raise _conflict(f"hooks.{number}.name", "is the name of another hook too; expected different names")
            if [bool(hook.url), bool(hook.command), bool(hook.push)].count(True) != 1:
                raise _conflict(
                    f"hooks.{number}.name", "is of a hook that has not exactly one of url, command and push"
                )
            if "events" not in hook.model_fields_set and not hook.push:
                raise _conflict(f"hooks.{number}.name", "is of a hook without events; only a push has some by itself")
            if hook.secret_file and not hook.url:
                raise _conflict(f"hooks.{number}.secret_file", "is for a hook with a url")
            if hook.ca_file and not hook.push and not (hook.url or "").startswith("https:"):
                raise _conflict(f"hooks.{number}.ca_file", "needs a url that begins with https:, or a push")
            if hook.push and "timeout" in hook.model_fields_set:
                raise _conflict(f"hooks.{number}.timeout", "is for a hook with a url or a command")
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        server, admin = self.server, self.admin
        if server.tls_cert and not server.tls_key:
            raise _conflict("server.tls_cert", "needs server.tls_key as well")
        if server.tls_key and not server.tls_cert:
            raise _conflict("server.tls_key", "needs server.tls_cert as well")
        if not is_loopback(admin.host) and not admin.token_file:
            raise _conflict("admin.host", "is not a loopback address, so admin.token_file is required")
        public_host = urlsplit(admin.public_url or "").hostname
        if public_host and not is_loopback(public_host) and not admin.token_file:
            raise _conflict("admin.public_url", "is not on loopback, so admin.token_file is required")
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


def _reaches(listener: str, host: str) -> bool:
    """Return whether a connection from this machine to `host` reaches a socket that is bound to `listener`."""
    if listener in _ANY:
        return host in _ANY or is_loopback(host)
    return host == listener or {host, listener} <= {"localhost", "127.0.0.1", "::1", *_ANY}


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _keys(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KEYS: Final = tuple(_keys(Config))
"""Every key with its section: `server.host` to `log.format`."""
