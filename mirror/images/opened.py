"""What the library gives a request: a body to send, and how it was found."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

from mirror.images.fill import Fill
from mirror.store.base import Body, Remote


class Found(Enum):
    """How the body of a request was found."""

    STORED = "stored"
    BEGAN = "began a fill"
    JOINED = "joined a fill"
    PASSED = "passed through"


@dataclass(frozen=True, slots=True)
class Opened:
    """A body to send, how it was found, and the fill when there is one."""

    body: Body
    found: Found
    fill: Fill | None = None

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[None]:
        """Be one of the fill's clients within the context, and the reader of the body."""
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
        """Wait until bytes are clearly coming. Raises FillFailed."""
        if self.fill is not None and self.body is self.fill:
            await self.fill.answered()
