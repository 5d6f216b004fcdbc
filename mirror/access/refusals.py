"""Remembers what upstream has just refused, with its answer: for three seconds no process of a mirror asks again."""

import base64
import json

from cachetools import TTLCache

from mirror.common.shared_memory import SharedNotes
from mirror.model.errors import UpstreamRefused

LASTING = 3.0
"""Seconds that a refusal is remembered: long enough against a flood, short enough for a token that was just made."""

SIZE = 8 << 20
"""Bytes that refusals take at most in one process, each with upstream's own answer."""

SHARED = 1024
LONGEST = 2048
"""Refusals that all processes share, and bytes of each; a longer answer is not shared."""


def shared_refusals(descriptor: int | None = None) -> SharedNotes:
    """Make the memory that the processes of a mirror share for this."""
    return SharedNotes(SHARED, LONGEST, LASTING, descriptor)


class Refusals:
    """The refusals that this process has heard, and through `shared` those that others have heard."""

    def __init__(self, shared: SharedNotes | None = None) -> None:
        self._own: TTLCache[str, UpstreamRefused] = TTLCache(SIZE, LASTING, getsizeof=_size)
        self._shared = shared

    def get(self, name: str, credential: str | None) -> UpstreamRefused | None:
        """Return the refusal of that credential, if there is one; `name` is how this process knows it."""
        if refusal := self._own.get(name):
            return refusal
        if self._shared is None or (note := self._shared.get(credential or "")) is None:
            return None
        said = json.loads(note)
        return UpstreamRefused(said["status"], base64.b64decode(said["body"]), said["headers"])

    def put(self, name: str, credential: str | None, refusal: UpstreamRefused) -> None:
        """Remember a refusal, for all processes."""
        # Anew: the one that was raised holds on to all that was under way then, kilobytes of it.
        self._own[name] = UpstreamRefused(refusal.status, refusal.body, refusal.headers)
        if self._shared is not None:
            body = base64.b64encode(refusal.body).decode()
            note = {"status": refusal.status, "body": body, "headers": dict(refusal.headers)}
            self._shared.put(credential or "", json.dumps(note).encode())


def _size(refusal: UpstreamRefused) -> int:
    return 1024 + len(refusal.body) + sum(map(len, refusal.headers.values()))
