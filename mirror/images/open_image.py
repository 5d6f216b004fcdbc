"""What the library gives to a request: a body to send, and how it was found."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mirror.images.fill import Fill
from mirror.model.cache_status import CacheStatus
from mirror.store.base import Body, Remote


@dataclass(frozen=True, slots=True)
class OpenImage:
    """A body to send, how it was found, and the fill if there is one."""

    body: Body
    status: CacheStatus
    fill: Fill | None = None

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[None]:
        """Count as one of the fill's clients within the context, and as a reader of the body."""
        if self.fill is not None:
            self.fill.clients += 1
        try:
            yield
        finally:
            if self.fill is not None:
                self.fill.clients -= 1
            if isinstance(self.body, Remote):
                await self.body.close()

    async def answered(self) -> None:
        """Wait until it is clear that bytes will come. Raises FillFailed."""
        if self.fill is not None and self.body is self.fill:
            await self.fill.answered()
