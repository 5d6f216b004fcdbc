"""What the mirror tells others about itself: an image is here, upstream is away. Hooks deliver it.

Code that can tell something gets a `Notify`, and calls it where the thing happens, from any thread. It never waits.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

from mirror.model.metadata import ImageMetadata


class Kind(StrEnum):
    """What may happen. The value is the name that a hook's `events` and its receivers know."""

    IMAGE_STORED = "image.stored"
    IMAGE_CURRENT = "image.current"
    IMAGE_INDEXED = "image.indexed"
    IMAGE_EVICTED = "image.evicted"
    IMAGE_QUARANTINED = "image.quarantined"
    FILL_FAILED = "fill.failed"
    UPSTREAM_AWAY = "upstream.away"
    UPSTREAM_BACK = "upstream.back"
    STORE_FAILING = "store.failing"
    IMPORT_FINISHED = "import.finished"
    HOOK_TEST = "hook.test"


EVENTS = tuple(kind for kind in Kind if kind is not Kind.HOOK_TEST)
"""What a hook may want. The test goes to any hook that a person names."""

Detail = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Notification:
    """One thing that happened, in words and for machines. Nothing in it is a secret.

    `image` is the hash of the image that it is about, `metadata` what is known of that, `tags` those by which it can be
    pulled, if more are known than metadata tells. The `id` stays the same however
    often the notification is delivered.
    """

    kind: Kind
    message: str
    image: str | None = None
    metadata: ImageMetadata | None = None
    tags: Sequence[str] = ()
    details: Mapping[str, Detail] = field(default_factory=lambda: MappingProxyType({}))
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def about(cls, kind: Kind, metadata: ImageMetadata, message: str, **details: Detail) -> "Notification":
        """Make one about an image whose metadata is known."""
        return cls(kind, message, metadata.hash, metadata, details=details)


Notify = Callable[[Notification], None]
"""Takes a notification, from any thread, and returns at once."""


def tell_nobody(_: Notification) -> None:
    """Take a notification where nobody is to be told."""
