"""Pushes the image of an event into another registry, such as the site's own."""

from collections.abc import Mapping

from mirror.admin.hooks.cloud_event import CloudEvent
from mirror.admin.hooks.target import Undelivered
from mirror.common.progress import Silence
from mirror.common.units import format_size
from mirror.config import Config, Hook
from mirror.model.errors import ConfigError, MirrorError, NotFound, UsageError
from mirror.model.push_target import Target as PushTarget
from mirror.wiring.push import open_registry, push_image


class Onward:
    """A `Target`: the registry of a hook. Its credential is found anew for each push, as docker and podman keep it."""

    def __init__(self, hook: Hook, config: Config, environ: Mapping[str, str]) -> None:
        assert hook.push is not None  # noqa: S101 - else it is a URL or a command
        self._hook = hook
        self._config = config
        self._environ = environ
        self._target = PushTarget.parse(hook.push)
        self.where = hook.push

    async def deliver(self, cloud_event: CloudEvent) -> str:
        """See `Target.deliver`."""
        try:
            if cloud_event.image is None:
                return await self._try_out()
            pushed = await push_image(
                self._config, self._target, cloud_event.image, self._environ, Silence(), ca_file=self._hook.ca_file
            )
        except NotFound as error:  # it was evicted, or removed
            raise Undelivered(str(error), never=True) from None
        except MirrorError as error:
            raise Undelivered(error.message) from None
        except (ConfigError, UsageError, OSError) as error:
            raise Undelivered(str(error)) from None
        return f"{pushed.target} is {pushed.pushed.digest}, {format_size(pushed.pushed.bytes_sent)} were sent"

    async def _try_out(self) -> str:
        """Get in at the registry, and push nothing: the event is about no image."""
        async with await open_registry(self._target, self._environ, ca_file=self._hook.ca_file) as remote:
            await remote.enter()
        return f"{self._target.registry} answers, and lets this user in"

    async def close(self) -> None:
        """See `Target.close`: there is nothing to let go of."""
