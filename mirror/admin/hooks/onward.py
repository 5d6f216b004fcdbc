"""Pushes the image of an event into another registry, such as the site's own."""

import asyncio
import ssl
from collections.abc import Mapping

from mirror.admin.hooks.cloud_event import CloudEvent
from mirror.admin.hooks.target import Undelivered
from mirror.admin.hooks.webhook import trusting
from mirror.common.progress import Silence
from mirror.common.units import format_size
from mirror.config import Config, Hook
from mirror.model.errors import ConfigError, MirrorError, NotFound, UsageError
from mirror.model.push_target import Target as PushTarget
from mirror.wiring.push import open_registry, push_image


class Onward:
    """A `Target`: the registry of a hook. Its credential is found anew for each push, as docker and podman keep it."""

    def __init__(self, config: Config, environ: Mapping[str, str], where: str, tls: ssl.SSLContext) -> None:
        self._config = config
        self._environ = environ
        self._target = PushTarget.parse(where)
        self._tls = tls
        self.where = where

    @classmethod
    async def opened(cls, hook: Hook, config: Config, environ: Mapping[str, str]) -> "Onward":
        """Open it. Raises ConfigError when the file of its authorities cannot be used."""
        assert hook.push is not None  # noqa: S101 - else it is a URL or a command
        return cls(config, environ, hook.push, await asyncio.to_thread(trusting, hook))

    async def deliver(self, cloud_event: CloudEvent) -> str:
        """See `Target.deliver`. An event about no image, such as a test, gets in at the registry and pushes nothing."""
        try:
            remote = await open_registry(self._target, self._environ, self._tls)
            if cloud_event.image is None:
                async with remote:
                    await remote.enter()
                return f"{self._target.registry} answers, and lets this user in"
            pushed = await push_image(self._config, self._target, cloud_event.image, remote, Silence())
        except NotFound as error:  # it was evicted, or removed
            raise Undelivered(str(error), never=True) from None
        except MirrorError as error:
            raise Undelivered(error.message) from None
        except (ConfigError, UsageError, OSError) as error:
            raise Undelivered(str(error)) from None
        return f"{pushed.target} is {pushed.pushed.digest}, {format_size(pushed.pushed.bytes_sent)} were sent"

    async def close(self) -> None:
        """See `Target.close`: there is nothing to let go of."""
