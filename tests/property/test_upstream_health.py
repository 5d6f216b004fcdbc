"""An upstream that may be away: one question finds out, the others are told, and nobody waits or is told for ever."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mirror.images.upstream_health import HANGING, Away, UpstreamHealth
from mirror.model.errors import MirrorError, Unavailable, UpstreamRefused

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def refusal(status: int) -> UpstreamRefused:
    return UpstreamRefused(status, b"{}", {})


@dataclass(eq=False)
class Client:
    """One that asks. `outcome` is given by the test once it has reached upstream, at `began`; `told` is what it got.

    It `tries` when upstream was away as it asked.
    """

    waits: bool
    task: "asyncio.Task[None] | None" = None
    outcome: "asyncio.Future[MirrorError | None] | None" = None
    began: float = math.nan
    tries: bool = False
    told: list[str] = field(default_factory=list)

    @property
    def reached_upstream(self) -> bool:
        return self.outcome is not None


class Machine(RuleBasedStateMachine):
    """Clients that come, are answered or not, and leave, in any order, as time goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.health = UpstreamHealth(lambda: EPOCH, lambda: self.now)
        self.clients: list[Client] = []
        self.heard = -math.inf
        self.spared_until = -math.inf

    def teardown(self) -> None:
        for client in self.clients:
            assert client.task is not None
            client.task.cancel()
        self.run()
        self.loop.close()

    def run(self) -> None:
        for _ in range(10):
            self.loop.run_until_complete(asyncio.sleep(0))

    @property
    def away(self) -> bool:
        return self.health.state.reachable is False

    @property
    def under_way(self) -> list[Client]:
        return [client for client in self.clients if client.reached_upstream and not client.told]

    async def ask(self, client: Client) -> None:
        try:
            async with self.health.asking(waits=client.waits):
                client.began, client.tries, client.outcome = self.now, self.away, self.loop.create_future()
                if (error := await client.outcome) is not None:
                    raise error
        except Away as away:
            client.told.append(f"away: {away}")
        except UpstreamRefused as refused:
            client.told.append(f"refused: {refused.status}")
        else:
            client.told.append("answered")

    @rule(seconds=st.sampled_from([0.1, HANGING, 3.0, 20.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @rule(waits=st.booleans())
    def a_client_comes(self, waits: bool) -> None:
        away, under_way = self.away, self.under_way
        silent = self.now - self.heard > HANGING
        client = Client(waits)
        self.clients.append(client)
        client.task = self.loop.create_task(self.ask(client))
        self.run()
        if not away:
            assert not client.told
            assert client.reached_upstream or (waits and silent and under_way)
        elif self.now < self.spared_until:
            assert not client.reached_upstream
            assert client.told[0].startswith("away")
        else:
            assert client.reached_upstream or client.told[0].startswith("away")

    @contextmanager
    def one_that_asks(self, draw: int) -> Iterator[Client]:
        client = self.under_way[draw % len(self.under_way)]
        yield client
        self.run()

    @precondition(lambda self: self.under_way)
    @rule(draw=st.integers(0, 100), error=st.sampled_from([None, refusal(403), refusal(429)]))
    def upstream_answers(self, draw: int, error: UpstreamRefused | None) -> None:
        with self.one_that_asks(draw) as client:
            assert client.outcome is not None
            client.outcome.set_result(error)
            self.heard, self.spared_until = self.now, -math.inf
        expected = "answered" if error is None else "away: " if error.status == 429 else f"refused: {error.status}"
        assert client.told[0].startswith(expected)
        assert self.health.state.reachable
        assert (self.health.state.reason is not None) == (error is not None and error.status == 429)

    @precondition(lambda self: self.under_way)
    @rule(draw=st.integers(0, 100))
    def upstream_gives_nothing(self, draw: int) -> None:
        away = self.away
        with self.one_that_asks(draw) as client:
            assert client.outcome is not None
            client.outcome.set_result(Unavailable(f"nothing at {self.now}"))
        assert client.told == [f"away: nothing at {self.now}"]
        took = self.now - client.began
        if not away and self.heard < client.began:
            assert self.away
            self.spared_until = self.now + (took if took > HANGING else 0.0)
        elif not away:
            assert not self.away  # it has answered since
        else:
            self.spared_until = -math.inf  # whichever question that was, this says nothing of when to ask

    @precondition(lambda self: self.under_way)
    @rule(draw=st.integers(0, 100))
    def a_client_leaves(self, draw: int) -> None:
        with self.one_that_asks(draw) as client:
            assert client.task is not None
            client.task.cancel()
            client.told.append("left")

    @invariant()
    def nobody_waits_when_nobody_asks(self) -> None:
        if not self.under_way:
            assert all(client.told for client in self.clients)

    @invariant()
    def one_asks_of_an_upstream_that_is_away(self) -> None:
        assert sum(client.tries for client in self.under_way) <= 1


TestUpstreamHealth = Machine.TestCase
