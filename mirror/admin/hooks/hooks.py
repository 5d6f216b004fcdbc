"""The hooks of a mirror in its first process: queues notifications, delivers them, applies another configuration."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from mirror.admin.audit import Audit
from mirror.admin.hooks.command import Command
from mirror.admin.hooks.delivery import Delivery, Route
from mirror.admin.hooks.onward import Onward
from mirror.admin.hooks.publisher import Publisher
from mirror.admin.hooks.target import Target
from mirror.admin.hooks.webhook import Webhook
from mirror.common.metrics import Metrics
from mirror.common.tasks import BackgroundTasks
from mirror.config import Config, Hook
from mirror.config.reloadable import Ready
from mirror.model.status import HookLine
from mirror.store.base import StoreUnavailable
from mirror.wiring.mirror import Mirror


class Hooks:
    """All hooks of `config`. Workers have a `Publisher` only."""

    def __init__(self, config: Config, environ: Mapping[str, str], metrics: Metrics) -> None:
        self._environ = environ
        self._delivery = Delivery(config.store.path / "hooks", metrics)
        self._audit = Audit(config.store.path)
        self._hooks = config.hooks
        self._routes: dict[Hook, Route] = {}
        self._background = BackgroundTasks()
        self.publisher = Publisher(config, metrics, self._delivery.moved)

    async def lines(self) -> Sequence[HookLine]:
        """Return how each hook is doing."""
        return await self._delivery.lines()

    async def prepare(self, config: Config) -> Ready:
        """Open where events go, at start and on SIGHUP. Raises ConfigError."""
        targets: list[Target] = []
        try:
            for hook in config.hooks:
                targets.append(await open_target(hook, config, self._environ))  # noqa: PERF401 - those so far are closed
        except BaseException:
            for target in targets:
                await target.close()
            raise

        def apply() -> None:
            if config.hooks != self._hooks:
                self._background.start(self._record(self._hooks, config.hooks), "record that hooks have changed")
            self._hooks = config.hooks
            self.publisher.take_up(config)
            routes = {
                hook: Route(hook.name, self.publisher.queues[hook.name], target)
                for hook, target in zip(config.hooks, targets, strict=True)
            }
            # a command that runs goes on; a URL's secret may be another one
            self._routes = routes | {
                hook: self._routes[hook] for hook in routes if hook.command and hook in self._routes
            }
            self._delivery.take_up(list(self._routes.values()))

        files = any(hook.secret_file or hook.ca_file for hook in config.hooks)
        return Ready(apply, ("files of hooks",) if files else ())

    @asynccontextmanager
    async def running(self, mirror: Mirror) -> AsyncIterator[None]:
        """Deliver while the context lasts, and first tell what `mirror` could not tell any more when it was killed.

        Raises ConfigError.
        """
        async with self._delivery.running():
            (await self.prepare(mirror.config)).apply()
            mirror.parts.append(self.prepare)
            if mirror.config.hooks and mirror.stores.bucket is None:
                with suppress(StoreUnavailable):
                    await self._catch_up(mirror)
            try:
                yield
            finally:
                await self._background.settled()

    async def _record(self, before: Sequence[Hook], after: Sequence[Hook]) -> None:
        names = dict.fromkeys(hook.name for hook in (*before, *after) if hook not in before or hook not in after)
        note = partial(self._audit.note, "SIGHUP", "change hooks", ", ".join(names), "done")
        await asyncio.get_running_loop().run_in_executor(None, note)

    async def _catch_up(self, mirror: Mirror) -> None:
        stored = [info.metadata for info in await mirror.stores.front.list() if info.verified_at is not None]
        note = await mirror.metadata_cache.last_answer()
        named = {metadata.hash: metadata for metadata in (*([note.metadata] if note else ()), *stored)}
        current = named.get(await mirror.metadata_cache.known_hash() or "")
        await asyncio.get_running_loop().run_in_executor(mirror.pool, self.publisher.catch_up, current, stored)


async def open_target(hook: Hook, config: Config, environ: Mapping[str, str]) -> Target:
    """Open where the events of a hook go. Raises ConfigError."""
    if hook.command:
        return Command(hook, config, environ)
    if hook.push:
        return await Onward.opened(hook, config, environ)
    return await Webhook.opened(hook, environ)
