"""What holds for all tests. The fixtures they share are in tests/support."""

import os
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = [
    "tests.support.fixtures",
    "tests.support.s3.fixtures",
    "tests.support.s3.replicas",
    "tests.support.s3.with_image",
]

hypothesis.settings.register_profile("any machine", deadline=None)  # how fast it is shows nothing
hypothesis.settings.load_profile("any machine")

_FIRST = ("faults/test_bucket_fails.py", "faults/test_fleet.py", "faults", "e2e", "stores", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that in the end all workers of a parallel run have something to do."""
    root = Path(__file__).parent
    turns = {root / name: turn for turn, name in enumerate(_FIRST)}

    def turn(item: pytest.Item) -> int:
        return turns.get(item.path, turns.get(item.path.parent, len(turns)))

    items.sort(key=turn)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI nothing may be skipped, for whatever reason: a test that does not run shows nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
