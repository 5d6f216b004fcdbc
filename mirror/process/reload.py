"""Reloads the configuration and the files that it names on SIGHUP, while downloads continue.

It is all or nothing: if anything cannot be used, everything stays as it was, and one line in the log says why.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from mirror.common.log import event
from mirror.config import Changes, Config
from mirror.config.reloadable import Part
from mirror.model.errors import ConfigError
from mirror.process.signals import on_signal
from mirror.process.systemd import ServiceManager

log = logging.getLogger(__name__)

Read = Callable[[Config], Awaitable[Config]]
"""Reads the configuration again; gets the running one. Raises ConfigError."""


class Reload:
    """Applies the configuration that `read` returns to all `parts`; `config` is the one that they begin with."""

    def __init__(self, config: Config, read: Read, parts: Sequence[Part]) -> None:
        self._config = config
        self._read = read
        self._parts = parts
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Reload soon."""
        self._asked.set()

    @asynccontextmanager
    async def kept(self, manager: ServiceManager) -> AsyncIterator[None]:
        """Reload on every SIGHUP and `ask` while the context lasts, and tell the service manager when.

        From the first use on, SIGHUP no longer kills the process.
        """
        on_signal(signal.SIGHUP, self.ask)
        keeper = asyncio.create_task(self._keep(manager), name="reload")
        try:
            yield
        finally:
            keeper.cancel()

    async def _keep(self, manager: ServiceManager) -> None:
        while await self._asked.wait():
            self._asked.clear()
            manager.reloading()
            try:
                await self._reload()
            except ConfigError as error:
                log.error("SIGHUP: %s; nothing has changed", error, extra=event("reload.failed"))
            except Exception:
                log.exception("SIGHUP: a mistake of the mirror", extra=event("mirror.mistake"))
            manager.ready()

    async def _reload(self) -> None:
        changes = Changes.between(self._config, await self._read(self._config))
        ready = [await part(changes.config) for part in self._parts]
        self._config = changes.config
        for each in ready:
            each.apply()
        if changes.restart:
            log.warning(
                "SIGHUP: a restart is needed for %s; until then what was set before holds",
                ", ".join(changes.restart),
                extra=event("reload.restart"),
            )
        if changes.kept:
            log.warning(
                "SIGHUP: not set any more, and as it was all the same: %s; to change it, set it",
                ", ".join(changes.kept),
                extra=event("reload.kept"),
            )
        files = [key for each in ready for key in each.files]
        said = ", ".join(dict.fromkeys((*changes.taken, *files))) or "nothing"
        log.info("SIGHUP: reloaded %s", said, extra=event("mirror.reloaded"))
