"""What holds for all tests. The fixtures they share are in tests/support/fixtures.py."""

import os

import pytest

pytest_plugins = ["tests.support.fixtures", "tests.support.s3.fixtures"]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI nothing may be skipped, for whatever reason: a test that does not run shows nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
