"""What is known of a server that may be away: at most one tries, the others are told, and nobody is told for ever."""

import math

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from mirror.common.circuit_breaker import Breaker, Question

KINDS = ["read", "list"]
LEAST = 5.0


class Machine(RuleBasedStateMachine):
    """Questions that begin and end in any order, some of which nobody waits for, as time goes by."""

    questions = Bundle("questions")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker: Breaker[str] = Breaker(lambda: self.now, lambda took: max(LEAST, took))
        self.trials: set[Question] = set()
        self.answers: list[tuple[str, float]] = []
        self.until = -math.inf
        self.kind = ""

    @rule(seconds=st.floats(0.1, 30.0))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.away is None)
    @rule(target=questions, kind=st.sampled_from(KINDS))
    def whoever_asks_of_a_server_that_answers_may(self, kind: str) -> Question:
        question = self.breaker.ask(kind)
        assert question is not None
        assert not question.trial
        return question

    @precondition(lambda self: self.breaker.away is not None and not self.trials and self.now >= self.until)
    @rule(target=questions, kind=st.sampled_from(KINDS))
    def one_tries_when_it_is_time_and_no_other_does_meanwhile(self, kind: str) -> Question:
        question = self.breaker.ask(kind)
        assert question is not None
        assert question.trial
        self.trials.add(question)
        assert self.breaker.ask(kind) is None
        return question

    @precondition(lambda self: self.breaker.away is not None and (self.trials or self.now < self.until))
    @rule(kind=st.sampled_from(KINDS))
    def the_others_are_told(self, kind: str) -> None:
        assert self.breaker.ask(kind) is None

    @rule(question=consumes(questions))
    def an_answer(self, question: Question) -> None:
        before = self.breaker.away
        back = self.breaker.answered(question)
        self.answers.append((question.kind, self.now))
        assert back == (before is not None and self.breaker.away is None)
        if question in self.trials or question.kind == self.kind:
            assert self.breaker.away is None
        else:
            assert self.breaker.away == before
        self.trials.discard(question)

    @rule(question=consumes(questions))
    def a_failure(self, question: Question) -> None:
        before, trial = self.breaker.away, question in self.trials
        heard_since = any(kind == question.kind and at >= question.began for kind, at in self.answers)
        went = self.breaker.failed(question, f"since {self.now}")
        assert went == (before is None and not heard_since)
        if went or (before is not None and trial):
            assert self.breaker.away == f"since {self.now}"
            self.until = self.now + max(LEAST, self.now - question.began)
        else:
            assert self.breaker.away == before
        if went:
            self.kind = question.kind
        self.trials.discard(question)

    @rule(question=consumes(questions))
    def nobody_waits_any_more(self, question: Question) -> None:
        before = self.breaker.away
        self.breaker.dropped(question)
        assert self.breaker.away == before
        self.trials.discard(question)

    @invariant()
    def it_is_never_known_for_ever(self) -> None:
        if self.breaker.away is not None:
            assert self.breaker.wait == max(0.0, self.until - self.now)
        assert len(self.trials) <= 1


TestBreaker = Machine.TestCase


def asked(breaker: Breaker[str], kind: str) -> Question:
    question = breaker.ask(kind)
    assert question is not None
    return question


def test_what_was_asked_before_shows_that_it_is_back_if_it_is_of_the_kind_that_failed() -> None:
    breaker: Breaker[str] = Breaker(lambda: 0.0, lambda _: LEAST)
    read, another_read, listing = (asked(breaker, kind) for kind in ("read", "read", "list"))
    assert breaker.failed(read, "it hangs")
    assert not breaker.answered(listing)
    assert breaker.away == "it hangs"
    assert breaker.answered(another_read)
    assert breaker.away is None
