"""A circuit breaker: spares a server that is away, and finds out with one question at a time whether it is back.

While the server answers, every caller may ask. After a failure no caller may until it is time to try again; then one
may, and its outcome counts for all. The breaker knows no server, task or error: callers tell it what came of a
question.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

E = TypeVar("E")


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A question that is being asked: its `kind`, when it `began`, and whether it is the `trial` for all callers."""

    kind: str
    began: float
    trial: bool = False


class Breaker(Generic[E]):
    """The state of one server; `E` is the type of what says why it is away.

    `pause` returns how many seconds nobody may ask after a failure that took so many seconds; `clock` counts seconds.
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
        """Why no caller may ask; None while the server answers."""
        return self._away

    @property
    def wait(self) -> float:
        """Seconds until the next trial."""
        return max(0.0, self._until - self._clock())

    def ask(self, kind: str = "") -> Question | None:
        """Begin a question. Returns None when it may not be asked: `away` says why.

        Every question ends in one of `answered`, `failed` and `dropped`.
        """
        if self._away is None:
            return Question(kind, self._clock())
        if self._trial is not None or self.wait > 0:
            return None
        self._trial = Question(kind, self._clock(), trial=True)
        return self._trial

    def answered(self, question: Question) -> bool:
        """Note that the server answered. Returns whether it was away until now."""
        self._heard[question.kind] = self._clock()
        # That another kind of question, asked before, is answered now does not show that this one would be.
        back = self._away is not None and (question.trial or question.kind == self._kind)
        if back:
            self._away = None
        self.dropped(question)
        return back

    def failed(self, question: Question, error: E) -> bool:
        """Note that it did not. Returns whether it is away now: not if it has answered such a question since."""
        opens = self._away is None and self._heard.get(question.kind, -math.inf) < question.began
        if opens:
            self._kind = question.kind
        if opens or (self._away is not None and question is self._trial):
            now = self._clock()
            self._away, self._until = error, now + self._pause(now - question.began)
        self.dropped(question)
        return opens

    def dropped(self, question: Question) -> None:
        """Note that no caller waits for the answer any more, so another one may try."""
        if self._trial is question:
            self._trial = None
