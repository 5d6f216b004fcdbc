"""`pps-mirror hooks test`: sends one event to a hook, now and once, and tells how it was taken."""

import asyncio
from collections.abc import Mapping

from mirror.admin.hooks.cloud_event import CloudEvent, encoded
from mirror.admin.hooks.hooks import open_target
from mirror.admin.hooks.target import Undelivered
from mirror.config import Config
from mirror.model.errors import ConfigError, MirrorError
from mirror.model.notification import Kind, Notification


def test(config: Config, environ: Mapping[str, str], name: str) -> str:
    """Send a test to the hook of that name, and return the answer in words. Raises ConfigError, MirrorError."""
    return asyncio.run(_test(config, environ, name))


async def _test(config: Config, environ: Mapping[str, str], name: str) -> str:
    hooks = {hook.name: hook for hook in config.hooks}
    if name not in hooks:
        there = f"there are {', '.join(hooks)}" if hooks else "there are none"
        raise ConfigError(f"no hook is named {name!r}; {there}")
    target = await open_target(hooks[name], config, environ)
    event = CloudEvent.parse(encoded(Notification(Kind.HOOK_TEST, "somebody tries this hook")))
    try:
        return f"hook {name}: {await target.deliver(event)}"
    except Undelivered as error:
        raise MirrorError(f"hook {name}: {error}") from None
    finally:
        await target.close()
