"""How many connections the descriptors of this process are enough for.

What runs keeps what it needs: who comes when there are as many connections as that is told so, and gets none of the
descriptors that a download, a fill or `/healthz` will want in a moment.
"""

import resource
from dataclasses import dataclass

from mirror.model.errors import ConfigError

LEAST = 64
"""Descriptors without which no mirror runs."""

RESERVE = 192
"""Those kept for all but connections: event loops, threads that look something up, stored images and fills with
their transfers, workers, a bucket. When few may be open it is half of them."""

EACH = 2
"""For a client: its connection, and what it takes to send (a copy of it) or to ask upstream in its name."""

OPERATORS = 512
"""For connections to the admin listener, also of those that are told that they are too many."""

BEYOND = 256
"""For clients above the limit, who are told so; those above these are closed without a word."""


@dataclass(frozen=True, slots=True)
class DescriptorBudget:
    """How the descriptors are shared out: clients served at once, above them those told so, operators' connections.

    `limit` is how many may be open; `wanted` is what `server.max_connections` says.
    """

    limit: int
    wanted: int
    clients: int
    beyond: int
    operators: int

    @classmethod
    def of(cls, wanted: int) -> "DescriptorBudget":
        """Share out what this process may have at most (see `take_all`). Raises ConfigError when it is too little."""
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
        """What to say when there cannot be as many clients as the configuration allows; None when there can."""
        if self.clients == self.wanted:
            return None
        return (
            f"server.max_connections = {self.wanted}, but {self.limit} files may be open at once: that is enough for "
            f"{self.clients} connections; raise the limit to {files_for(self.wanted)} (ulimit -Hn, LimitNOFILE=)"
        )


def files_for(connections: int) -> int:
    """How many files a mirror with so many client connections has to be allowed to open."""
    return connections * EACH + BEYOND + OPERATORS + RESERVE


def take_all() -> None:
    """Take as many file descriptors as are allowed: the usual 1024 are fewer than `server.max_connections`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
