"""The real library, fills and store of two processes, driven at random, against a model that knows the right bytes.

Lines are cut, fall silent and lie; clients join at any offset, and leave; processes restart; images roll over and are
removed by hand; partials are torn or altered while the mirror is down. What must hold all the while is in
`Machine.check`, what must come true in the end in `Machine.come_to_rest`.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from mirror.images import retry
from mirror.images.fill_outcome import FillFailed, Reason
from mirror.images.library import Library
from mirror.model.caller import Caller, OwnCredential
from mirror.model.errors import MirrorError
from mirror.store.disk import partial_file
from mirror.store.disk.store import DiskStore
from mirror.upstream.client import Upstream
from tests.support.in_memory import directory_in_memory
from tests.support.scripted_upstream import HOLDBACK, IMAGES, METADATA, SIZES, Fate, ScriptedUpstream
from tests.support.several_connections import MODULE, eager

PROCESSES = 2
PATIENCE = 30.0
"""Seconds within which everything must come to rest: far more than it takes."""


cuts = st.builds(Fate, after=st.integers(0, max(SIZES)), then=st.sampled_from(["cut", "cut", "hang"]))
failures = st.one_of(
    st.builds(Fate, drop=st.just(True)),
    st.builds(Fate, status=st.sampled_from([429, 500, 503])),
)
lies = st.one_of(
    st.builds(Fate, ranges=st.just(False), after=st.none() | st.integers(0, max(SIZES))),
    st.builds(Fate, etag=st.sampled_from(["none", "weak", "other"]), after=st.none() | st.integers(0, max(SIZES))),
    st.builds(Fate, shift=st.sampled_from([-7, 7])),
    st.builds(Fate, total=st.sampled_from([-7, 7])),
    st.builds(Fate, wrong_byte=st.integers(0, max(SIZES) - 1), after=st.none() | st.integers(0, max(SIZES))),
    st.builds(Fate, after=st.integers(0, max(SIZES)), then=st.just("end")),
    st.builds(Fate, status=st.sampled_from([401, 403, 404, 416]), redirected=st.booleans()),
)
parts = st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1))


@dataclass
class Client:
    """A client that wants [start, stop) of an image: what it has, and how it ended."""

    number: int
    process: int
    start: int
    stop: int
    received: bytearray = field(default_factory=bytearray)
    ended: str | None = None

    @property
    def right(self) -> bytes:
        """What it should have by now."""
        return IMAGES[self.number][self.start : self.start + len(self.received)]


class Machine(RuleBasedStateMachine):
    """Two processes with one store between them, and everybody around them."""

    took_steps: Callable[[], None] = staticmethod(lambda: None)

    @initialize(connections=st.sampled_from([1, 4]))
    def begin(self, connections: int) -> None:
        """Start with an empty store."""
        self.directory = directory_in_memory()
        self.root = Path(self.directory.name)
        self.loop = asyncio.new_event_loop()
        self.pool = ThreadPoolExecutor(4)
        self.clients: list[tuple[Client, asyncio.Task[None]]] = []
        self.removed: set[int] = set()
        self.upstream = self.do(self._make_upstream(connections))
        self.libraries = [self.do(self._make_library()) for _ in range(PROCESSES)]

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run the loop until that is done; else the world stands still."""
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE))

    async def _make_upstream(self, connections: int) -> ScriptedUpstream:
        return ScriptedUpstream(connections)

    async def _make_library(self) -> Library:
        store = DiskStore(self.root, min_free=0, pool=self.pool)
        await store.prepare()
        upstream = cast("Upstream", self.upstream)
        return Library(store, upstream, own=OwnCredential(None), holdback=HOLDBACK, retry=3600, changed=lambda: None)

    # Clients

    @rule(
        number=st.none() | st.none() | st.integers(0, len(IMAGES) - 1),
        fresh=st.booleans(),
        fates=st.lists(cuts | cuts | failures | lies, max_size=5),
        crowd=st.lists(st.tuples(st.integers(0, PROCESSES - 1), parts), min_size=1, max_size=4),
        turns=st.integers(0, 10),
    )
    def come(
        self,
        number: int | None,
        fresh: bool,
        fates: list[Fate],
        crowd: list[tuple[int, tuple[float, float] | None]],
        turns: int,
    ) -> None:
        """Clients come and want the current image, or another one, or ranges of it; maybe it was removed before."""
        number = self.upstream.current if number is None else number
        if fresh:
            self.remove(number, whole=True)
        self.upstream.fates += fates
        for process, part in crowd:
            start, stop = (0, SIZES[number]) if part is None else sorted(int(each * SIZES[number]) for each in part)
            client = Client(number, process, start, stop)
            self.clients.append((client, self.loop.create_task(self._download(client))))
        self.do(_turns(turns))

    async def _download(self, client: Client) -> None:
        metadata = METADATA[client.number]
        try:
            opened = await self.libraries[client.process].open(metadata, Caller(None, str(client.number)), client.start)
            if opened.fill is not None:
                await opened.fill.answered()
            position = client.start
            while position < client.stop:
                limit = min(client.stop, await opened.body.available(position))
                assert position < limit
                if limit > metadata.size - HOLDBACK:
                    assert self._stored(client.number).exists() or client.number in self.removed
                file = opened.body.file_at(position)
                assert file is not None
                client.received += file.read(position, limit)
                position = client.start + len(client.received)
        except FillFailed as failure:
            client.ended = str(failure.reason)
        except MirrorError:
            client.ended = "refused"
        else:
            client.ended = "complete"
        assert client.ended != str(Reason.MISTAKE)
        assert client.ended in {"complete", str(Reason.STOPPED)} or client.number in self.upstream.blamed, client.ended

    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        """A client leaves, wherever it is."""
        if self.clients:
            _, task = self.clients.pop(which % len(self.clients))
            task.cancel()
            self.do(asyncio.wait({task}))

    @rule(turns=st.integers(1, 30))
    def go_on(self, turns: int) -> None:
        """Some time passes."""
        self.do(_turns(turns))

    # Upstream

    @rule()
    def release(self) -> None:
        """What hangs is cut at last."""
        self.upstream.release()
        self.do(_turns(3))

    @rule(number=st.integers(0, len(IMAGES) - 1))
    def roll_over(self, number: int) -> None:
        """Upstream has another image from now on."""
        self.upstream.current = number

    # What happens to the mirror

    @rule(process=st.integers(0, PROCESSES - 1))
    def restart(self, process: int) -> None:
        """One process ends and starts anew."""
        self.do(self._restart([process]))

    @rule(number=st.integers(0, len(IMAGES) - 1), how=st.sampled_from(["torn", "flipped", "lengthened", "note"]))
    def crash(self, number: int, how: str) -> None:
        """All end, and find a partial in another state than they left it."""
        self.do(self._stop([*range(PROCESSES)]))
        partial = self.root / "partial" / METADATA[number].hash
        note = partial.with_name(f"{partial.name}.json")
        if how == "note" and note.exists():
            note.write_bytes(b"{")
        elif partial.exists() and (size := partial.stat().st_size):
            if how == "torn":
                os.truncate(partial, size // 2)
            else:
                data = bytearray(partial.read_bytes())
                data[size // 2] ^= how == "flipped"
                partial.write_bytes(data + b"\0" * (50 if how == "lengthened" else 0))
                self.upstream.blamed.add(number)
                self.upstream.tainted.add(number)
        self.do(self._start([*range(PROCESSES)]))

    @rule(number=st.integers(0, len(IMAGES) - 1), whole=st.booleans())
    def remove(self, number: int, whole: bool) -> None:
        """Somebody removes a stored image by hand."""
        if self._stored(number).exists():
            self.removed.add(number)
            if any(client.number == number and not task.done() for client, task in self.clients):
                self.upstream.blamed.add(number)  # who follows may not have seen that it was published
            if whole:
                shutil.rmtree(self._stored(number).parent)
            else:
                self._stored(number).unlink()

    async def _restart(self, processes: list[int]) -> None:
        await self._stop(processes)
        await self._start(processes)

    async def _stop(self, processes: list[int]) -> None:
        # As the listeners do: nobody new is let in, then fills are stopped, then everybody has gone.
        theirs = [(client, task) for client, task in self.clients if client.process in processes]
        for client, task in theirs:
            if not client.received:
                task.cancel()
                await asyncio.wait({task})
        for process in processes:
            await self.libraries[process].stop()
        for client, task in theirs:
            await asyncio.wait({task})
            self.clients.remove((client, task))
            self._judge(client, task)

    async def _start(self, processes: list[int]) -> None:
        for process in processes:
            self.libraries[process] = await self._make_library()

    # What must hold

    def _stored(self, number: int) -> Path:
        return self.root / "images" / METADATA[number].hash / "image"

    def _judge(self, client: Client, task: "asyncio.Task[None]") -> None:
        if task.done() and not task.cancelled():
            task.result()
        verified = client.stop > SIZES[client.number] - HOLDBACK and client.ended == "complete"
        if verified or client.number not in self.upstream.tainted:
            assert client.received == client.right

    @invariant()
    def check(self) -> None:
        """No name is given to wrong bytes, no partial holds any, and no client has any that could be known."""
        if not hasattr(self, "libraries"):
            return
        self.took_steps()
        for number, image in enumerate(IMAGES):
            partial = self.root / "partial" / METADATA[number].hash
            if (stored := _content(self._stored(number))) is not None:
                assert stored == image
            if number not in self.upstream.tainted and (received := _content(partial)) is not None:
                assert image.startswith(received)
        for client, task in self.clients:
            self._judge(client, task)
        self.clients = [(client, task) for client, task in self.clients if not task.done()]

    @rule(really=st.integers(0, 3))
    def rest(self, really: int) -> None:
        """Sometimes it all comes to rest."""
        if not really:
            self.come_to_rest()

    def come_to_rest(self) -> None:
        """When the line is good again everybody comes to an end, and who was not lied to has all bytes."""
        self.upstream.fates.clear()
        self.do(self._all_end())
        self.check()
        self.do(self._restart([*range(PROCESSES)]))  # who was sent wrong bytes too often remembers it for a while
        for number in range(len(IMAGES)):
            if not (self.root / "partial" / METADATA[number].hash).exists():
                self.upstream.tainted.discard(number)
                self.upstream.blamed.discard(number)

    async def _all_end(self) -> None:
        while waiting := [task for _, task in self.clients if not task.done()]:
            self.upstream.release()
            await asyncio.wait(waiting, timeout=0.01)

    def teardown(self) -> None:
        """In the end a new process has the current image for a new client."""
        if not hasattr(self, "libraries"):
            return
        try:
            self.come_to_rest()
            number = self.upstream.current
            self.upstream.blamed.add(number)
            tries: list[str | None] = []  # wrong bytes that are left cost one, and so does another image's validator
            while len(tries) < 3 and "complete" not in tries:
                client = Client(number, 0, 0, SIZES[number])
                self.do(self._download(client))
                tries.append(client.ended)
            assert tries[-1] == "complete", tries
            assert client.received == IMAGES[number]
            self.do(self._stop([*range(PROCESSES)]))
            assert not self.upstream.filling
        finally:
            for _, task in self.clients:
                task.cancel()
            self.loop.run_until_complete(_turns(3))
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.pool.shutdown()
            self.directory.cleanup()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0.0005)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF", (0.0, 0.0))
    monkeypatch.setattr(partial_file, "FOLLOW", 0.002)
    for name, value in eager(window=6000).items():
        monkeypatch.setattr(f"{MODULE}.{name}", value)


def run(examples: int, steps: int, *, derandomize: bool) -> int:
    """Run the machine; how many steps it took."""
    taken = 0

    def took_step() -> None:
        nonlocal taken
        taken += 1

    class Counted(Machine):
        took_steps = staticmethod(took_step)

    run_state_machine_as_test(
        Counted,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            print_blob=True,
            phases=[Phase.generate],  # threads take their own time: a shorter example would be another one
            suppress_health_check=list(HealthCheck),
        ),
    )
    return taken


def test_whatever_happens_nobody_gets_wrong_bytes_and_in_the_end_everybody_the_right_ones() -> None:
    assert run(80, 50, derandomize=True) >= 2000


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_the_same_for_an_hour_at_random() -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "3600"))
    deadline, seeds, steps = time.monotonic() + seconds, 0, 0
    while time.monotonic() < deadline:
        steps += run(40, 100, derandomize=False)  # a seed of its own, which Hypothesis prints when it fails
        seeds += 1
        print(f"{seeds} seeds, {steps} steps", flush=True)
