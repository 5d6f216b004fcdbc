"""SIGHUP: what was read from files at start is read again, while downloads run on.

A file that cannot be used changes nothing: what was read before stays in use, and one line in the log says why.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from mirror.errors import ConfigError
from mirror.systemd import ServiceManager

log = logging.getLogger(__name__)


class Reloader:
    """Loads again whatever `parts` has, by the key that names the file; each on its own, whatever becomes of others.

    A part raises ConfigError when it has changed nothing. The service manager is told of the beginning and the end.
    """

    def __init__(self, parts: Mapping[str, Callable[[], Awaitable[None]]], manager: ServiceManager) -> None:
        self._parts = parts
        self._manager = manager
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Reload soon, once for all who ask before it begins."""
        self._asked.set()

    async def run(self) -> None:
        """Reload whenever asked to, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._manager.reloading()
            reloaded = [key for key, load in self._parts.items() if await _worked(load)]
            log.info("SIGHUP: reloaded %s", ", ".join(reloaded) or "nothing")
            self._manager.ready()


async def _worked(load: Callable[[], Awaitable[None]]) -> bool:
    try:
        await load()
    except ConfigError as error:
        log.error("SIGHUP: %s; what was read before stays in use", error)
        return False
    except Exception:
        log.exception("SIGHUP: a mistake of the mirror; what was read before stays in use")
        return False
    return True
