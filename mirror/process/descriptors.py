"""Divides the descriptors of this process among client connections, operators and everything else.

Running downloads, fills and `/healthz` must always find a descriptor. So further clients are refused before the last
descriptors are gone.
"""

import resource
from dataclasses import dataclass

from mirror.model.errors import ConfigError

LEAST = 64
"""The fewest descriptors that a mirror runs with."""

RESERVE = 192
"""Descriptors for everything but connections: event loops, threads, stored images, fills and their transfers, workers,
a bucket. When the limit is low, half of it is reserved."""

EACH = 2
"""Descriptors for each client: its connection, and a copy of it to send, or a connection to upstream."""

OPERATORS = 512
"""Descriptors for connections to the admin listener, including those that get 503."""

BEYOND = 256
"""Descriptors for clients above the limit, which get 503; further ones are closed."""


@dataclass(frozen=True, slots=True)
class DescriptorBudget:
    """How the descriptors are divided: clients that are served, clients `beyond` them that get 503, and operators.

    `limit` is how many descriptors may be open; `wanted` is `server.max_connections`.
    """

    limit: int
    wanted: int
    clients: int
    beyond: int
    operators: int

    @classmethod
    def of(cls, wanted: int) -> "DescriptorBudget":
        """Divide the hard limit of this process (see `take_all`). Raises ConfigError when it is too low."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = most if most != resource.RLIM_INFINITY else 1 << 30
        if limit < LEAST:
            raise ConfigError(
                f"only {limit} files may be open at once, and {LEAST} are the least: raise the limit "
                "(ulimit -Hn, LimitNOFILE=)"
            )
        left = limit - min(RESERVE, limit // 2)
        operators = min(OPERATORS, left // 8)
        beyond = min(BEYOND, left // 8)
        return cls(limit, wanted, min(wanted, (left - operators - beyond) // EACH), beyond, operators)

    @property
    def lacking(self) -> str | None:
        """What to warn of when fewer clients fit than the configuration allows; None when all fit."""
        if self.clients == self.wanted:
            return None
        return (
            f"server.max_connections = {self.wanted}, but {self.limit} files may be open at once: that is enough for "
            f"{self.clients} connections; raise the limit to {files_for(self.wanted)} (ulimit -Hn, LimitNOFILE=)"
        )


def files_for(connections: int) -> int:
    """Return the limit of open files that a mirror needs for that many client connections."""
    return connections * EACH + BEYOND + OPERATORS + RESERVE


def take_all() -> None:
    """Raise the soft limit to the hard one: the usual 1024 are too few for `server.max_connections`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
