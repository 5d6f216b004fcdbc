"""Limits how often the admin token may be guessed, from each address and from all addresses together.

A token is compared only while its address may be wrong once more, so that a client that hangs up early learns nothing.
The same wrong token counts once: an open page with yesterday's token sends it again and again. A client that guesses
slows down all clients at the same address, but none at another address that was right before. SIGHUP forgets
everything.
"""

import hashlib
import hmac
import ipaddress
import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.model.errors import MirrorError

FROM_ONE = (10, 5.0)
"""How many wrong tokens one address may send at once, and seconds until it may send one more."""

FROM_ALL = (100, 0.5)
"""The same for all addresses together that have not been right before."""

ADDRESSES = 1000
"""The most addresses that are remembered, of those that were wrong and of those that were right."""

log = logging.getLogger(__name__)


class TooManyGuesses(MirrorError):
    """Too many wrong tokens came recently; this one was not compared."""

    status = 429


@dataclass(slots=True)
class _Budget:
    """How many wrong tokens were `left` at `counted_at`; another is allowed `every` seconds, up to `most`."""

    most: int
    every: float
    left: float
    counted_at: float

    def wait(self, now: float) -> float:
        """Return the seconds until another wrong token is allowed."""
        self.left = min(self.most, self.left + (now - self.counted_at) / self.every)
        self.counted_at = now
        return max(0.0, (1 - self.left) * self.every)


@dataclass(slots=True)
class _Guesser:
    budget: _Budget
    last: bytes


class Guesses:
    """Counts wrong tokens. Addresses are those of the clients, as texts."""

    def __init__(self, metrics: Metrics, timer: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._timer = timer
        self._key = secrets.token_bytes(16)  # wrong tokens are stored hashed with it, because they may be nearly right
        self.forget()

    def forget(self) -> None:
        """Forget everything, because the token has changed."""
        self._wrong: OrderedDict[str, _Guesser] = OrderedDict()
        self._right: OrderedDict[str, None] = OrderedDict()
        self._all = self._budget(FROM_ALL)

    def admit(self, address: str, token: bytes) -> None:
        """Raise TooManyGuesses unless this address may be wrong once more."""
        network, now = _network(address), self._timer()
        wait = 0.0 if network in self._right else self._all.wait(now)
        if guesser := self._wrong.get(network):
            if guesser.last == self._digest(token):
                return
            wait = max(wait, guesser.budget.wait(now))
        if wait > 0:
            self._metrics.admin_refusals.labels("slowed").inc()
            raise TooManyGuesses(
                "too many wrong tokens came from this address lately, or from all: this one was not looked at; wait, "
                "or have the mirror forget them by SIGHUP",
                retry_after=math.ceil(wait),
            )

    def was_wrong(self, address: str, token: bytes) -> None:
        """Count a token that was wrong."""
        self._metrics.admin_refusals.labels("wrong").inc()
        network, now, digest = _network(address), self._timer(), self._digest(token)
        guesser = self._wrong.setdefault(network, _Guesser(self._budget(FROM_ONE), b""))
        self._wrong.move_to_end(network)
        while len(self._wrong) > ADDRESSES:
            self._wrong.popitem(last=False)
        if guesser.last == digest:
            return
        guesser.last = digest
        for budget in (guesser.budget, self._all):
            budget.wait(now)
            budget.left = max(0.0, budget.left - 1)
        log.warning("%s sent a wrong admin token", address, extra=event("http.wrong_token", address=address))
        if guesser.budget.wait(now):
            log.warning(
                "so many wrong admin tokens came from %s that others from there have to wait",
                address,
                extra=event("admin.slowed", address=address),
            )

    def was_right(self, address: str) -> None:
        """Remember that this address knows the token."""
        network = _network(address)
        self._right[network] = None
        self._right.move_to_end(network)
        while len(self._right) > ADDRESSES:
            self._right.popitem(last=False)

    def _budget(self, bounds: tuple[int, float]) -> _Budget:
        most, every = bounds
        return _Budget(most, every, most, self._timer())

    def _digest(self, token: bytes) -> bytes:
        return hmac.digest(self._key, token, hashlib.sha256)


def _network(address: str) -> str:
    """Return what counts as one address: with IPv6 a whole /64, because one host has all of it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
