"""`pps-mirror pull`: fetches the current image into the store now, with the mirror's own token.

It never fetches at the same time as another process on the same store. It asks a running mirror to do it; and it
follows a transfer of another process, and takes that over only when the other one gives it up.
"""

import asyncio
from collections.abc import Mapping

from mirror.admin.hooks.publisher import Publisher
from mirror.cli.running_mirror import ROLLOVERS, MirrorGone, running_mirror
from mirror.common.metrics import Metrics
from mirror.common.progress import Meter
from mirror.common.units import format_duration, format_size
from mirror.config import TOKEN_VARIABLE, Config
from mirror.images.fill_outcome import FillFailed, Reason, State
from mirror.images.fill_progress import show_progress
from mirror.images.upstream_health import Away
from mirror.model.cache_status import CacheStatus
from mirror.model.caller import Caller
from mirror.model.errors import ConfigError, MirrorError, UpstreamRefused
from mirror.model.metadata import ImageMetadata
from mirror.store.base import StoreUnavailable
from mirror.wiring.mirror import Mirror, open_mirror


async def pull(config: Config, environ: Mapping[str, str], meter: Meter) -> None:
    """Fetch the current image into the store, and show the progress on `meter`.

    When cancelled it keeps what it has received. Raises ConfigError, or MirrorError when the image cannot be had.
    """
    if config.upstream.url is None:
        raise ConfigError("there is nothing to pull from: set upstream.url")
    async with running_mirror(config) as running:
        if running is not None:
            try:
                await running.bring(meter)
            except MirrorGone as gone:
                meter.say(f"the running mirror does not bring it ({gone.message}): going on without it")
            else:
                return
    metrics = Metrics()
    async with (
        Publisher(config, metrics).running() as publisher,
        open_mirror(config, environ, metrics=metrics, notify=publisher) as mirror,
    ):
        await _Pull(mirror, meter).run()


class _Pull:
    """Fetches the current image into the store of an open mirror."""

    def __init__(self, mirror: Mirror, meter: Meter) -> None:
        self._mirror = mirror
        self._meter = meter
        self._caller = mirror.own.lend(Caller(None, "pps-mirror", who="pps-mirror pull"))

    async def run(self) -> None:
        """Fetch the current image; begin again with the new one if upstream rolls over."""
        rollovers = 0
        while True:
            metadata = await self._current()
            try:
                await self._bring(metadata)
            except FillFailed as failure:
                rollovers += 1
                if failure.reason is not Reason.CHANGED or rollovers == ROLLOVERS:
                    raise failure.error from failure
                self._meter.say("upstream has another image than it said: asking again")
            else:
                return

    async def _current(self) -> ImageMetadata:
        try:
            return (await self._mirror.metadata_cache.fetch(self._caller)).metadata
        except Away as away:
            raise away.error from None
        except UpstreamRefused as refusal:
            raise MirrorError(self._explain(refusal.status)) from None

    def _explain(self, status: int) -> str:
        if status == 404:
            return "upstream has no image (it answered 404)"
        if self._caller.authorization is None:
            return f"upstream wants a token (it answered {status}): set upstream.token_file or {TOKEN_VARIABLE}"
        source = "in upstream.token_file" if self._mirror.config.upstream.token_file else f"in {TOKEN_VARIABLE}"
        return f"upstream refuses the token {source} (it answered {status})"

    async def _bring(self, metadata: ImageMetadata) -> None:
        """Fetch the image unless it is stored. Raises FillFailed, StoreUnavailable."""
        name = f"{metadata.hash[:12]} ({format_size(metadata.size)})"
        clock = asyncio.get_running_loop().time
        began = clock()
        opened = await self._mirror.library.open(metadata, self._caller)
        if opened.fill is None:
            self._meter.say(f"{name} is stored already: nothing to do")
            return
        if opened.fill.state is State.FOLLOWING:
            self._meter.say("another process is receiving this image into the same store: following it")
        if opened.status is not CacheStatus.BYPASS:
            await show_progress(opened.fill, self._meter, kept="will be resumed by the next pull or by serve")
        if opened.fill.passes_through:
            raise StoreUnavailable(self._mirror.library.store_state.trouble or "the mirror's store takes no image")
        await self._settle()
        if opened.fill.journal.ours:
            self._meter.say(f"{name} is verified and stored, after {format_duration(clock() - began)}")
        else:
            self._meter.say(f"{name} is stored, by the other process")

    async def _settle(self) -> None:
        """Wait until the image is in the bucket as well, if there is one."""
        bucket = self._mirror.stores.bucket
        if bucket is not None and bucket.background.busy:
            self._meter.say("it is being brought into the bucket")
            await bucket.background.settled()
