"""Reports how a fill began and how it ended: to the log, the metrics, the hooks, and to what counts wrong bytes."""

import logging
from collections.abc import Callable

from mirror.common.log import event
from mirror.common.metrics import Metrics
from mirror.common.units import format_duration, format_size
from mirror.images.fill import Fill
from mirror.images.fill_outcome import OUTCOMES, Reason
from mirror.images.store_health import StoreHealth
from mirror.images.wrong_bytes import WrongBytes
from mirror.model.caller import Caller
from mirror.model.notification import Kind, Notification, Notify
from mirror.model.source import Origin

log = logging.getLogger(__name__)


class FillReport:
    """Reports fills. `changed` is called when upstream turned out to have another image than its metadata said."""

    def __init__(
        self, metrics: Metrics, health: StoreHealth, wrong: WrongBytes, changed: Callable[[], None], notify: Notify
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._wrong = wrong
        self._changed = changed
        self._notify = notify
        # all of them at zero from the start: otherwise the first of each would not show as an increase
        for outcome in OUTCOMES:
            metrics.fills.labels(outcome)

    def began(self, fill: Fill, caller: Caller) -> None:
        """Report that the fill has begun, for that caller, or that it follows another process."""
        ours = fill.journal.ours
        log.info(
            "fill of %s (%s) %s",
            fill.metadata.hash,
            format_size(fill.metadata.size),
            f"began for {caller.who}" if ours else "is another process's: following it",
            extra=event("fill.began" if ours else "fill.joined", image=fill.metadata.hash, size=fill.metadata.size),
        )

    def ended(self, fill: Fill, seconds: float) -> None:
        """Report the fill's verdict, after that many seconds."""
        self._metrics.fills.labels(_outcome(fill)).inc()
        if fill.failure is None:
            self._went_well(fill, seconds)
        else:
            self._failed(fill, fill.failure.reason)

    def _went_well(self, fill: Fill, seconds: float) -> None:
        image_hash = fill.metadata.hash
        self._metrics.fill_seconds.observe(seconds)
        self._wrong.forget(image_hash)
        if not fill.passes_through:
            self._health.was_named()
        how = "verified and stored" if fill.journal.ours else "verified and stored by the other process"
        if fill.passes_through:
            how = "verified and passed through" + (", and cannot be stored" if fill.nameless else "")
        log.log(
            logging.ERROR if fill.nameless else logging.INFO,
            "fill of %s %s: %s in %s%s",
            image_hash,
            how,
            format_size(fill.metadata.size),
            format_duration(seconds),
            _resumed(fill.resumes),
            extra=event(f"fill.{_outcome(fill)}", image=image_hash, seconds=seconds, resumes=fill.resumes),
        )
        # whoever brought it into the bucket that mirrors share has told of it
        if fill.journal.ours and not fill.passes_through and fill.origin not in {Origin.REPLICA, Origin.STORE}:
            took = format_duration(seconds)
            said = f"{image_hash} is verified and stored: {format_size(fill.metadata.size)} in {took}"
            self._notify(Notification.about(Kind.IMAGE_STORED, fill.metadata, said, seconds=round(seconds, 3)))

    def _failed(self, fill: Fill, reason: Reason) -> None:
        image_hash = fill.metadata.hash
        log.log(
            logging.INFO if reason in {Reason.STOPPED, Reason.ABANDONED} else logging.ERROR,
            "fill of %s failed at byte %d: %s",
            image_hash,
            fill.position,
            fill.failure,
            extra=event(f"fill.{_outcome(fill)}", image=image_hash, position=fill.position),
        )
        if fill.journal.ours and reason not in {Reason.STOPPED, Reason.ABANDONED}:
            said = f"the transfer of {image_hash} failed: {fill.failure}"
            position = fill.position
            failed = Notification.about(Kind.FILL_FAILED, fill.metadata, said, reason=reason.outcome, position=position)
            self._notify(failed)
        if reason is Reason.WRONG_BYTES:
            self._metrics.unverified.labels("fill").inc()
            # otherwise they were in the store, or another process counts them
            if fill.journal.ours and fill.origin is Origin.UPSTREAM:
                self._wrong.count(image_hash)
        if reason in {Reason.WRONG_BYTES, Reason.CHANGED}:
            self._changed()


def _outcome(fill: Fill) -> str:
    """Return how the fill ended, in one word for machines."""
    if fill.failure is not None:
        return fill.failure.reason.outcome
    if fill.passes_through:
        return "passed_through"
    return "published" if fill.journal.ours else "followed"


def _resumed(resumes: int) -> str:
    return f", resumed {resumes} time{'' if resumes == 1 else 's'}" if resumes else ""
