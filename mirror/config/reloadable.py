"""What takes up another configuration while the mirror runs: the parts of a mirror, each in two steps.

First every part gets ready, which may fail and changes nothing; when all are, each has it hold, which cannot fail. So a
configuration holds as a whole or not at all. Whoever builds a part that can change adds it to `Mirror.parts`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from mirror.config import Config


@dataclass(frozen=True, slots=True)
class Ready:
    """A part that is ready: `apply` has the new configuration hold, and cannot fail.

    `files` are the keys of the files that were read again for it.
    """

    apply: Callable[[], object]
    files: tuple[str, ...] = ()


Part = Callable[[Config], Awaitable[Ready]]
"""Gets ready for a configuration, reading its files. Raises ConfigError when it cannot, having changed nothing."""


def at_once(apply: Callable[[Config], object]) -> Part:
    """Make a part of what needs nothing but the configuration."""

    async def prepare(config: Config) -> Ready:
        return Ready(partial(apply, config))

    return prepare
