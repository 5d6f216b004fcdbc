"""Sparing a server that is away: one finds out whether it is back, all others are told at once what is known.

While it answers everybody asks. After a failure nobody does until it is time to try again; then one does, and what
becomes of that counts for all. It knows no server, no task and no error: who asks says what came of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

E = TypeVar("E")


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Something that is being asked: of which `kind`, since when, and whether it is the one by which all find out."""

    kind: str
    began: float
    trial: bool = False


class Breaker(Generic[E]):
    """What is known of one server; `E` is what says why it is away.

    `pause` gives how many seconds after a failure nobody asks, by how many it took to fail; `clock` counts seconds.
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
        """Why nobody is to ask; None while the server answers."""
        return self._away

    @property
    def wait(self) -> float:
        """Seconds until one may try."""
        return max(0.0, self._until - self._clock())

    def ask(self, kind: str = "") -> Question | None:
        """Begin a question; None when it is not to be asked: `away` says why.

        Every question ends in one of `answered`, `failed` and `dropped`.
        """
        if self._away is None:
            return Question(kind, self._clock())
        if self._trial is not None or self.wait > 0:
            return None
        self._trial = Question(kind, self._clock(), trial=True)
        return self._trial

    def answered(self, question: Question) -> bool:
        """The server answered; whether it was away until now."""
        self._heard[question.kind] = self._clock()
        # That another kind of question, asked before, is answered now does not show that this one would be.
        back = self._away is not None and (question.trial or question.kind == self._kind)
        if back:
            self._away = None
        self.dropped(question)
        return back

    def failed(self, question: Question, error: E) -> bool:
        """It did not; whether it is away from now on. It is not if it answered such a question since this was asked."""
        opens = self._away is None and self._heard.get(question.kind, -math.inf) < question.began
        if opens:
            self._kind = question.kind
        if opens or (self._away is not None and question is self._trial):
            now = self._clock()
            self._away, self._until = error, now + self._pause(now - question.began)
        self.dropped(question)
        return opens

    def dropped(self, question: Question) -> None:
        """Nobody waits for the answer any more, so nothing is known: somebody else may try."""
        if self._trial is question:
            self._trial = None
