"""The configuration: every key with its type, default and limits, read from a TOML file and the environment.

Code can rely on a `Config`: its values are parsed and normalised, do not contradict each other, and an empty text is
None. Every problem is one `ConfigError`, whose text is one line that a person can act on and that never quotes a value
that may be a secret. It never touches the network or the store, and imports `common` and `model` only.
"""

from mirror.common.environment import FILE_VARIABLE, PREFIX, TOKEN_VARIABLE
from mirror.config.changes import RESTART, Changes
from mirror.config.loader import load, load_admin_token, load_token
from mirror.config.schema import KEYS, S3, Admin, Auth, Config, Hook, Log, Prefetch, RateWindow, Server, Store, Upstream

__all__ = [
    "FILE_VARIABLE",
    "KEYS",
    "PREFIX",
    "RESTART",
    "S3",
    "TOKEN_VARIABLE",
    "Admin",
    "Auth",
    "Changes",
    "Config",
    "Hook",
    "Log",
    "Prefetch",
    "RateWindow",
    "Server",
    "Store",
    "Upstream",
    "load",
    "load_admin_token",
    "load_token",
]
