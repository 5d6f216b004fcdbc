"""Upstream is away: what is known is served, what is not is a quick 503, and finding out costs one question."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mirror.simulator.client import TOKEN, Fault, ImageSpec, Simulator
from tests.support.downloads import Download
from tests.support.fixtures import Ask
from tests.support.forked import ForkedMirror
from tests.support.processes import eventually, free_port

CLIENTS = 50
TOKENS = [f"token-of-client-{number:02}" for number in range(CLIENTS)]
REVOKED = "token-that-was-taken-back"
CONNECT = 2.0
SLOW_MACHINE = 12.0
"""Seconds on top of what is promised: far below a minute."""


def always_ask(**upstream: Any) -> dict[str, dict[str, Any]]:
    return {
        "auth": {"ttl": "0s"},
        "upstream": {"metadata_ttl": "0s", "connect_timeout": f"{CONNECT:g}s"} | upstream,
    }


def upstream_at(port: int) -> Simulator:
    return Simulator.start([ImageSpec("first", size=1 << 20)], tokens=[TOKEN, *TOKENS, REVOKED], api_port=port)


class Silent:
    """Takes connections on a port and says nothing; counts them."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    @property
    def connections(self) -> int:
        return len(self._taken)

    def _accept(self) -> None:
        while True:
            try:
                self._taken.append(self._listener.accept()[0])
            except OSError:
                return

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._taken:
            connection.close()


@contextmanager
def backlog_full() -> Iterator[int]:
    """A port where nobody can connect any more, and nobody is told so: its backlog is full and never emptied."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            one = waiting.enter_context(socket.socket())
            one.settimeout(1.0)
            try:
                one.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener.getsockname()[1]


@contextmanager
def refusing() -> Iterator[int]:
    """A port that nobody listens on."""
    yield free_port()


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    port = free_port()
    with Silent(port):
        yield port


@pytest.mark.parametrize(
    ("dead", "status", "seconds"),
    [(refusing, 503, 0.0), (backlog_full, 503, CONNECT), (silent, 503, CONNECT)],
    ids=["refused", "backlog full", "silent"],
)
def test_when_nothing_is_known_clients_are_told_soon_and_when_to_come_back(
    tmp_path: Path, ask: Ask, dead: Callable[[], Any], status: int, seconds: float
) -> None:
    with dead() as port, ForkedMirror(tmp_path / "mirror", f"http://127.0.0.1:{port}", always_ask()) as mirror:
        for url in (mirror.metadata_url, mirror.image_url, f"{mirror.url}/api/v2/version/"):
            began = time.monotonic()
            answer = ask(url)
            assert time.monotonic() - began < seconds + SLOW_MACHINE
            expected = 504 if dead is silent and url.endswith("/version/") else status  # which may take its time
            assert (answer.status, answer.header("Content-Type")) == (expected, "application/json")
            assert int(answer.header("Retry-After")) > 0
            assert "upstream" in json.loads(answer.body)["message"]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def known(tmp_path: Path, port: int) -> Iterator[ForkedMirror]:
    """A mirror that has the image and let all of TOKENS in, and is started again when its upstream has gone away."""
    mirror = ForkedMirror(tmp_path / "mirror", f"http://127.0.0.1:{port}", always_ask())
    with upstream_at(port), mirror, ThreadPoolExecutor(8) as pool:
        assert get(mirror.image_url, TOKEN).status == 200
        assert {each.status for each in pool.map(lambda token: get(mirror.metadata_url, token), TOKENS)} == {200}
        mirror.stop()
    yield mirror
    if mirror.alive():
        mirror.stop()


def questions_allowed(began: float) -> int:
    """How often an upstream that hangs may be asked from then on: it is spared as long as a question takes."""
    return 1 + int((time.monotonic() - began) / (4 * CONNECT))


def get(url: str, token: str) -> Download:
    with Download(url, headers={"Authorization": f"Bearer {token}"}) as download:
        return download.read_all()


def all_at_once(url: str, tokens: list[str]) -> list[Download]:
    barrier = threading.Barrier(len(tokens))

    def one(token: str) -> Download:
        barrier.wait()
        return get(url, token)

    with ThreadPoolExecutor(len(tokens)) as pool:
        return list(pool.map(one, tokens))


def test_a_hanging_upstream_costs_one_question_for_fifty_clients_and_all_are_served(
    known: ForkedMirror, port: int
) -> None:
    with Silent(port) as upstream, known:
        began = time.monotonic()
        answers = all_at_once(known.metadata_url, TOKENS)
        assert {(each.status, each.header("Cache-Status")) for each in answers} == {
            (200, "pps-mirror; hit; detail=stale")
        }
        assert upstream.connections <= questions_allowed(began)


def test_fifty_clients_with_one_credential_cost_one_question_too(known: ForkedMirror, port: int) -> None:
    with Silent(port) as upstream, known:
        began = time.monotonic()
        answers = all_at_once(known.metadata_url, [TOKEN] * CLIENTS)
        assert {each.status for each in answers} == {200}
        assert upstream.connections <= questions_allowed(began)


def test_a_metadata_answer_that_hangs_is_not_waited_for_again_while_upstream_is_away(
    known: ForkedMirror, port: int
) -> None:
    with upstream_at(port) as simulator, known:
        simulator.fault(Fault("metadata", hold=True, times=None))
        began = time.monotonic()
        for url in (known.metadata_url, known.image_url, known.metadata_url):
            assert get(url, TOKEN).header("Cache-Status") == "pps-mirror; hit; detail=stale"
        assert simulator.counters().metadata_requests <= questions_allowed(began)
        simulator.clear_faults()
        eventually(lambda: get(known.metadata_url, TOKEN).header("Cache-Status") == "pps-mirror; fwd=stale")


def test_after_a_restart_nothing_is_served_that_is_older_than_stale_if_error(known: ForkedMirror, port: int) -> None:
    with known:
        assert get(known.image_url, TOKEN).header("Cache-Status") == "pps-mirror; hit; detail=stale"
        assert get(known.image_url, "a-token-it-never-saw").status == 503
        known.stop()
        for days, status in ((29, 200), (31, 503)):
            note = json.loads((known.store / "current.json").read_text())
            note["fetchedAt"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
            (known.store / "current.json").write_text(json.dumps(note))
            known.start()
            for url in (known.metadata_url, known.image_url):
                assert get(url, TOKEN).status == status
            known.stop()


def test_all_workers_know_whom_any_of_them_let_in_or_refused_also_after_a_restart(
    tmp_path: Path, port: int, ask: Ask
) -> None:
    sections = always_ask() | {"server": {"workers": 2}}
    mirror = ForkedMirror(tmp_path / "mirror", f"http://127.0.0.1:{port}", sections)
    file = mirror.store / "access.json"

    def accepted() -> int:
        return len(json.loads(file.read_text())["accepted"])

    with mirror:
        with upstream_at(port) as simulator:
            # Each connection is new and finds a worker by chance; all but surely both have let in some of these.
            for token in [TOKEN, *TOKENS[:20], *[REVOKED] * 10]:
                assert ask(mirror.image_url, token).status == 200
            eventually(lambda: accepted() == 22)
            assert file.stat().st_mode & 0o777 == 0o600
            simulator.set_tokens([TOKEN, *TOKENS])
            assert ask(mirror.image_url, REVOKED).status == 401
            assert accepted() == 21
        for _ in range(2):
            for token in TOKENS[:20]:
                answer = ask(mirror.image_url, token)
                assert (answer.status, answer.header("Cache-Status")) == (200, "pps-mirror; hit; detail=stale")
            for token in [REVOKED, "a-token-it-never-saw"] * 4:
                assert ask(mirror.metadata_url, token).status in {401, 503}
            mirror.stop()
            mirror.start()


def test_what_one_process_heard_another_of_the_same_store_serves(tmp_path: Path, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    one = ForkedMirror(tmp_path / "one", url, always_ask())
    other = ForkedMirror(tmp_path / "other", url, always_ask() | {"store": {"path": str(one.store)}})
    with one, other:
        with upstream_at(port):
            assert get(one.image_url, TOKEN).status == 200
        assert get(other.metadata_url, "a-token-it-never-saw").status == 503
        for door in (other.metadata_url, other.image_url):
            answer = get(door, TOKEN)
            assert (answer.status, answer.header("Cache-Status")) == (200, "pps-mirror; hit; detail=stale")
