"""Says what the simulator does wrong, or in another way, and to which request.

Everything that differs from an installation in its best health is a `Fault`, redirect modes included. This module
decides; `api.py`, `objects.py` and `sending.py` carry it out.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

Place = Literal["version", "metadata", "image", "store"]
"""`image` is the API's image route; `store` is whatever hands out the bytes, also when that is the API's own port."""

_REDIRECTS = ("store", "direct", "origin", "relative", "latest", "loop")


@dataclass(frozen=True, slots=True)
class Fault:
    """One deviation, for the next `times` requests to its place (None: for all, until the faults are cleared).

    Faults for one place that set different fields act together on a request. Those that set the same field take turns
    in the order they were given, limited ones first; of two unlimited ones the newer counts.

    Offsets and lengths are in bytes; `*_after` counts the body bytes of this answer, not the image's offset.
    """

    on: Place
    times: int | None = field(default=1, kw_only=True)
    resumed: bool | None = field(default=None, kw_only=True)
    """True: only requests with a `Range`; False: only those without; None: either."""
    skip: int = field(default=0, kw_only=True)
    """So many requests that it is meant for are answered without it before."""

    # Any answer
    delay: float = field(default=0.0, kw_only=True)
    """Seconds before anything is sent."""
    hold: bool = field(default=False, kw_only=True)
    """Nothing is sent until `release`."""
    drop: bool = field(default=False, kw_only=True)
    """The connection is closed without an answer (with a reset when `reset`)."""
    status: int | None = field(default=None, kw_only=True)
    """This status and an error body instead of the answer; a 3xx on `image` is the redirect's status."""
    body: str | None = field(default=None, kw_only=True)
    """This text instead of the body (`metadata`, `version`, any error)."""
    encoding: str | None = field(default=None, kw_only=True)
    """A body that is no image's is sent in this `Content-Encoding`, whatever was asked for: `gzip` and `deflate` are
    done, another one is only said."""
    headers: Mapping[str, str | None] | None = field(default=None, kw_only=True)
    """Headers set on the answer whatever it is; None takes one away."""
    roll_over: str | None = field(default=None, kw_only=True)
    """This image becomes the current one once the answer is decided, or after `roll_over_after` of its body."""
    roll_over_after: int = field(default=0, kw_only=True)

    # Metadata
    values: Mapping[str, Any] | None = field(default=None, kw_only=True)
    """Fields with a false value, or unknown ones."""
    omit: tuple[str, ...] = field(default=(), kw_only=True)
    """Fields left out."""

    # Image: where the redirect leads
    redirect: str | None = field(default=None, kw_only=True)
    """`store` (as without a fault); `direct`: 200 with the bytes; `origin`: a path of the API's own port; `relative`:
    the same without scheme and host; `latest`: a key in the store whose bytes roll over; `loop`; or any URL with `://`."""
    hops: int = field(default=0, kw_only=True)
    """Redirects in the object store before the bytes, each `Location` relative to its own URL."""
    expires_in: float | None = field(default=None, kw_only=True)
    """Seconds the pre-signed URL is good for; negative: expired when it is handed out."""
    uses: int | None = field(default=None, kw_only=True)
    """Answers the pre-signed URL is good for."""

    # Store: the bytes
    ranges: bool = field(default=True, kw_only=True)
    """False: always the whole, with 200."""
    range_shift: int = field(default=0, kw_only=True)
    """Added to the start of the range asked for; `Content-Range` says so truthfully."""
    declare_extra: int = field(default=0, kw_only=True)
    """Added to `Content-Length`, not to the bytes."""
    send_extra: int = field(default=0, kw_only=True)
    """Added to the bytes (zeros at the end, or fewer), not to `Content-Length`."""
    chunked: bool = field(default=False, kw_only=True)
    """No `Content-Length`; with `send_extra` below zero the body ends early and cleanly."""
    corrupt_at: int | None = field(default=None, kw_only=True)
    """The image's byte at this offset is inverted."""
    hang_after: int | None = field(default=None, kw_only=True)
    """The connection stays open and silent until `release`, then goes on."""
    page: str | None = field(default=None, kw_only=True)
    """200 with something of this media type in the image's place: `body`, or a page of HTML. Without a length when
    `chunked`."""
    cut_after: int | None = field(default=None, kw_only=True)
    """The connection ends there: FIN, or a reset when `reset`."""
    cut_within: int | None = field(default=None, kw_only=True)
    """The same, after a random number of bytes below this: a line that loses connections."""
    at_most: int | None = field(default=None, kw_only=True)
    """While so many requests are being answered with bytes, others get `status`, or 503 without one."""
    reset: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.redirect is not None and self.redirect not in _REDIRECTS and "://" not in self.redirect:
            raise ValueError(f"redirect is one of {', '.join(_REDIRECTS)} or a URL, not {self.redirect!r}")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Fault":
        """The inverse of `dataclasses.asdict`, through JSON.

        Raises:
            TypeError: an unknown field.
            ValueError: a redirect that leads nowhere.
        """
        return cls(**{**data, "omit": tuple(data.get("omit", ()))})


_SELECTORS = ("on", "times", "resumed", "skip")
_DEFAULTS = {
    each.name: each.default for each in fields(Fault) if each.name not in _SELECTORS and each.default is not MISSING
}

_ADVERBS = {"reset", "roll_over_after"}
"""Fields that say how another field acts, so they never make a fault wait for its turn."""


@dataclass(slots=True)
class _InForce:
    """A fault, how many requests it still lets pass, and how many it is still for (None: all)."""

    fault: Fault
    skip: int
    times: int | None


class FaultPlan:
    """The faults in force. `take` alone decides what happens to a request."""

    def __init__(self) -> None:
        self._limited: list[_InForce] = []
        self._unlimited: list[_InForce] = []

    def add(self, fault: Fault) -> None:
        """Add a fault: a limited one behind those already there, an unlimited one before them."""
        new = _InForce(fault, fault.skip, fault.times)
        if fault.times is None:
            self._unlimited.insert(0, new)
        else:
            self._limited.append(new)

    def clear(self) -> None:
        """Remove all faults."""
        self._limited, self._unlimited = [], []

    def take(self, place: Place, *, resumed: bool) -> Fault:
        """Return what happens to this request, as one fault, and use up one time of the limited faults in it."""
        combined: dict[str, Any] = {}
        for each in (*self._limited, *self._unlimited):
            if each.fault.on != place or each.fault.resumed not in (None, resumed):
                continue
            if each.skip > 0:
                each.skip -= 1
            elif _join(combined, each.fault) and each.times is not None:
                each.times -= 1
        self._limited = [each for each in self._limited if each.times]
        return Fault(place, **combined)


def _join(combined: dict[str, Any], fault: Fault) -> bool:
    """Add what the fault sets, unless another one already sets some of it."""
    own = {name: value for name, default in _DEFAULTS.items() if (value := getattr(fault, name)) != default}
    if (combined.keys() & own.keys()) - _ADVERBS:
        return False
    combined.update(own)
    return True
