"""The parts of a mirror that can apply another configuration while it runs, each in two steps.

First every part prepares itself, which may fail and changes nothing. When all are ready, each one applies the
configuration, which cannot fail. So a configuration holds as a whole or not at all. A part that can change is in
`Mirror.parts`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from mirror.config import Config


@dataclass(frozen=True, slots=True)
class Ready:
    """A part that is ready: `apply` puts the new configuration into effect, and cannot fail.

    `files` are the keys of the files that were read again for it.
    """

    apply: Callable[[], object]
    files: tuple[str, ...] = ()


Part = Callable[[Config], Awaitable[Ready]]
"""Gets ready for a configuration and reads its files. Raises ConfigError when it cannot, and has changed nothing."""


def at_once(apply: Callable[[Config], object]) -> Part:
    """Make a part of a function that needs nothing but the configuration."""

    async def prepare(config: Config) -> Ready:
        return Ready(partial(apply, config))

    return prepare
