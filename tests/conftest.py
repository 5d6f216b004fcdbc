"""What holds for all tests. The fixtures they share are in tests/support."""

import gc
import os
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from mirror.simulator.client import Simulator
from tests.support.forking import fork_simulator

pytest_plugins = [
    "tests.support.fixtures",
    "tests.support.s3.fixtures",
    "tests.support.s3.replicas",
    "tests.support.s3.with_image",
]

# How fast a machine is shows nothing. What is tried is the same each time, so that a change is judged by what it does;
# `make explore` tries what nobody has tried.
hypothesis.settings.register_profile("the same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("at random", deadline=None)
hypothesis.settings.load_profile("the same")

Simulator.launch = staticmethod(fork_simulator)

_FIRST = (
    "faults/test_fleet.py",
    "faults/test_fleet_takes_over.py",
    "e2e/test_standard_streams.py",
    "faults/test_bucket_goes_away.py",
    "faults/test_workers.py",
    "faults/test_bucket_fails.py",
    "e2e/test_cli.py",
    "faults/test_bucket_credentials.py",
    "faults/test_clock_is_set.py",
    "e2e/test_s3.py",
    "stores/test_conformance.py",
    "stores/test_bucket_space.py",
    "e2e/test_container.py",
    "faults/test_bucket_by_hand.py",
    "e2e",
    "faults",
    "stores",
    "browser",
)
"""What takes longest, and beside what only waits, what computes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that in the end all workers of a parallel run have something to do."""
    root = Path(__file__).parent
    turns = {root / name: turn for turn, name in enumerate(_FIRST)}

    def turn(item: pytest.Item) -> int:
        return turns.get(item.path, turns.get(item.path.parent, len(turns)))

    items.sort(key=turn)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while tests are collected: all that is made then stays to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI nothing may be skipped, for whatever reason: a test that does not run shows nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
