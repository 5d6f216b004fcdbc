"""The states of a fill, and the reasons why it fails, as its readers and the log are told."""

import logging
from enum import Enum, StrEnum

from mirror.common.log import event
from mirror.model.errors import BadUpstream, MirrorError, Unavailable
from mirror.model.source import Changed
from mirror.store.base import Corrupt, Lost, StoreUnavailable
from mirror.store.memory import Abandoned

log = logging.getLogger(__name__)


class State(StrEnum):
    """The states of a fill. It ends as PUBLISHED or FAILED, once."""

    FOLLOWING = "following"
    RECEIVING = "receiving"
    RETRYING = "retrying"
    VERIFYING = "verifying"
    PUBLISHED = "published"
    FAILED = "failed"


class Reason(Enum):
    """Why a fill failed, in words; `outcome` is the name of that in metrics and in the log's events."""

    WRONG_BYTES = "wrong bytes", "wrong_bytes"
    CHANGED = "changed", "changed"
    REFUSED = "refused", "refused"
    GAVE_UP = "gave up", "gave_up"
    STORE = "store", "store_failed"
    ABANDONED = "abandoned", "abandoned"
    MISTAKE = "a mistake of the mirror", "other"
    STOPPED = "stopped", "stopped"

    def __init__(self, words: str, outcome: str) -> None:
        self._words = words
        self.outcome = outcome

    def __str__(self) -> str:
        return self._words


OUTCOMES = ("published", "followed", "passed_through", *(reason.outcome for reason in Reason))
"""All the ways in which a fill may end."""


class FillFailed(Exception):
    """The verdict of a fill that failed. `error` is what a client is told that has not received a byte yet.

    `words` say what happened, without the advice to such a client.
    """

    def __init__(self, reason: Reason, error: MirrorError, words: str | None = None) -> None:
        super().__init__(f"{reason}: {error}")
        self.reason = reason
        self.error = error
        self.words = words or error.message

    def anew(self) -> "FillFailed":
        """Return a copy of the verdict, for one more reader."""
        error = type(self.error).__new__(type(self.error), *self.error.args)
        error.__dict__.update(self.error.__dict__)
        if (cause := self.error.__cause__) is not None:
            cause.__context__ = None
            error.__cause__ = cause.with_traceback(None)
        return FillFailed(self.reason, error, self.words)


def verdict_on(error: Exception) -> FillFailed:
    """Turn the exception that ended a fill into its verdict."""
    match error:
        case FillFailed():
            return error
        case StoreUnavailable():
            return FillFailed(Reason.STORE, error)
        case MirrorError():
            return FillFailed(Reason.REFUSED, error)
        case Changed():
            return FillFailed(Reason.CHANGED, BadUpstream(f"{error}; ask again", retry_after=1), str(error))
        case Corrupt():
            told = BadUpstream(f"wrong bytes came in: {error}; ask again")
            return FillFailed(Reason.WRONG_BYTES, told, f"wrong bytes came in: {error}")
        case Lost():
            return FillFailed(Reason.CHANGED, Unavailable(f"{error}; ask again", retry_after=1), str(error))
        case Abandoned():
            return FillFailed(Reason.ABANDONED, Unavailable(f"{error}; ask again", retry_after=1), str(error))
        case _:
            log.error("a fill failed", exc_info=error, extra=event("mirror.mistake"))
            mistake = MirrorError("the mirror made a mistake while fetching the image; its log says more")
            return FillFailed(Reason.MISTAKE, mistake)
