"""A circuit breaker: while a server is away, one request finds out whether it is back, and all others fail at once.

While the server answers, every request is allowed. After a failure none is until it is time to try again; then one is,
and its outcome counts for all. The breaker knows no server, no task and no error: the caller reports the outcome.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

E = TypeVar("E")


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A request under way: its `kind`, when it began, and whether it is the `trial` whose outcome counts for all."""

    kind: str
    began: float
    trial: bool = False


class Breaker(Generic[E]):
    """Tracks whether one server answers; `E` is the type of the reason why it does not.

    `pause` returns for how many seconds after a failure no request is made, given how many the failure took; `clock`
    counts seconds.
    """

    def __init__(self, clock: Callable[[], float], pause: Callable[[float], float]) -> None:
        self._clock = clock
        self._pause = pause
        self._away: E | None = None
        self._kind = ""
        self._until = -math.inf
        self._trial: Question | None = None
        self._heard: dict[str, float] = {}

    @property
    def away(self) -> E | None:
        """The reason why no request may be made; None while the server answers."""
        return self._away

    @property
    def wait(self) -> float:
        """Return the seconds until a trial may begin."""
        return max(0.0, self._until - self._clock())

    def ask(self, kind: str = "") -> Question | None:
        """Begin a request; return None when it must not be made: `away` says why.

        Every request ends in one of `answered`, `failed` and `dropped`.
        """
        if self._away is None:
            return Question(kind, self._clock())
        if self._trial is not None or self.wait > 0:
            return None
        self._trial = Question(kind, self._clock(), trial=True)
        return self._trial

    def answered(self, question: Question) -> bool:
        """Note that the server answered; return whether it was away until now."""
        self._heard[question.kind] = self._clock()
        # An answer to another kind of request, made before, does not show that this kind would be answered.
        back = self._away is not None and (question.trial or question.kind == self._kind)
        if back:
            self._away = None
        self.dropped(question)
        return back

    def failed(self, question: Question, error: E) -> bool:
        """Note that it did not answer; return whether it counts as away from now on.

        It does not if it has answered a request of this kind since this one began.
        """
        opens = self._away is None and self._heard.get(question.kind, -math.inf) < question.began
        if opens:
            self._kind = question.kind
        if opens or (self._away is not None and question is self._trial):
            now = self._clock()
            self._away, self._until = error, now + self._pause(now - question.began)
        self.dropped(question)
        return opens

    def dropped(self, question: Question) -> None:
        """Note that the answer is no longer waited for, so nothing is known: another request may try."""
        if self._trial is question:
            self._trial = None
