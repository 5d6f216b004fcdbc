"""SIGHUP: what was read from files at start is read again, while downloads run on.

A file that cannot be used changes nothing: what was read before stays in use, and one line in the log says why.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from mirror.errors import ConfigError
from mirror.log import event
from mirror.process.signals import on_signal
from mirror.process.systemd import ServiceManager

log = logging.getLogger(__name__)


Part = Callable[[], Awaitable[bool | None]]
"""Reads one thing again; False: it is as it was. Raises ConfigError when it cannot be used, having changed nothing."""


@asynccontextmanager
async def reloading(parts: Mapping[str, Part], manager: ServiceManager) -> AsyncIterator[None]:
    """Reload `parts`, each under the key that names its file, at every SIGHUP: whatever becomes of the others.

    The service manager is told of the beginning and the end. From the first use on SIGHUP kills no more.
    """
    asked = asyncio.Event()
    on_signal(signal.SIGHUP, asked.set)
    keeper = asyncio.create_task(_keep(parts, manager, asked), name="reload")
    try:
        yield
    finally:
        keeper.cancel()


async def _keep(parts: Mapping[str, Part], manager: ServiceManager, asked: asyncio.Event) -> None:
    while await asked.wait():
        asked.clear()
        manager.reloading()
        reloaded = [key for key, load in parts.items() if await _worked(load)]
        log.info("SIGHUP: reloaded %s", ", ".join(reloaded) or "nothing", extra=event("mirror.reloaded"))
        manager.ready()


async def _worked(load: Part) -> bool:
    try:
        return await load() is not False
    except ConfigError as error:
        log.error("SIGHUP: %s; what was read before stays in use", error, extra=event("reload.failed"))
        return False
    except Exception:
        log.exception(
            "SIGHUP: a mistake of the mirror; what was read before stays in use", extra=event("mirror.mistake")
        )
        return False
