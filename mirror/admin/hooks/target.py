"""Where a hook's events go: what a URL and a command have in common."""

from typing import Protocol

from mirror.admin.hooks.cloud_event import CloudEvent


class Undelivered(Exception):
    """An event was not taken; `str()` says why, without a secret. Try again, in `retry_after` seconds or later.

    When the receiver wants it `never`, it is given up.
    """

    def __init__(self, reason: str, *, retry_after: float = 0.0, never: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.never = never


class Target(Protocol):
    """Takes events, one at a time. `where` says in a few words where they go; it is not a secret."""

    where: str

    async def deliver(self, cloud_event: CloudEvent) -> str:
        """Deliver an event, and return how it was taken, in words. Raises Undelivered.

        When cancelled, it leaves nothing behind; the event may have been taken.
        """

    async def close(self) -> None:
        """Let go of connections."""
