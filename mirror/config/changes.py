"""Compares the running configuration with a fresh one: what can change while the mirror runs, and what cannot."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from mirror.config.schema import KEYS, Config, Section
from mirror.model.errors import ConfigError

_S = TypeVar("_S", bound=Section)

RESTART: Final = frozenset(
    {
        "server.host",
        "server.port",
        "server.workers",
        "admin.host",
        "admin.port",
        "admin.public_url",
        "upstream.url",
        "upstream.rollover",
        "auth.mode",
        "store.path",
        "store.s3.bucket",
        "store.s3.prefix",
        "store.s3.endpoint_url",
        "store.s3.region",
        "store.s3.public_endpoint_url",
        "store.s3.local_copy",
        "registry.enabled",
        "registry.repository",
    }
)
"""Keys that take a restart: addresses, places, and what the mirror is built around."""

_TLS: Final = ("server.tls_cert", "server.tls_key")
"""Keys that may name other files while the mirror runs; switching TLS on or off takes a restart."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The configuration from now on, and the keys that differ: `taken` up, or left as they are.

    Keys in `restart` cannot change while the mirror runs. Keys in `kept` were removed from the configuration; they keep
    their values, because a file that was cut short must not lift a limit.
    """

    config: Config
    taken: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @classmethod
    def between(cls, running: Config, fresh: Config) -> "Changes":
        """Apply as much of `fresh` as possible. Raises ConfigError when the result contradicts itself."""
        different = [key for key in KEYS if value_of(running, key) != value_of(fresh, key)]
        kept = [key for key in different if key in given(running) and key not in given(fresh)]
        restart = [key for key in different if key not in kept and _needs_restart(key, running, fresh)]
        config = _with(fresh, {key: value_of(running, key) for key in (*kept, *restart)})
        try:
            Config.model_validate(config.model_dump())
        except ValidationError as error:
            said = error.errors(include_url=False, include_input=False)[0]
            key = said.get("ctx", {}).get("key", ".".join(map(str, said["loc"])))
            raise ConfigError(f"{key} {said['msg']}, with what takes a restart as it is now") from None
        taken = [key for key in different if key not in {*kept, *restart}]
        return cls(config, tuple(taken), tuple(restart), tuple(kept))


def value_of(config: Config, key: str) -> Any:
    """Return the value of a key."""
    return reduce(getattr, key.split("."), config)


def given(config: Config) -> frozenset[str]:
    """Return the keys that a file or a variable sets, as opposed to those that have their default."""
    return frozenset(_given(config))


def _given(section: Section, prefix: str = "") -> Iterable[str]:
    for name in section.model_fields_set:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _given(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _needs_restart(key: str, running: Config, fresh: Config) -> bool:
    switched = (running.server.tls_cert is None) != (fresh.server.tls_cert is None)
    return key in RESTART or (key in _TLS and switched)


def _with(config: Config, values: Mapping[str, Any]) -> Config:
    for key, value in values.items():
        config = _replaced(config, key.split("."), value)
    return config


def _replaced(section: _S, path: list[str], value: Any) -> _S:
    name, *rest = path
    inner = _replaced(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})
