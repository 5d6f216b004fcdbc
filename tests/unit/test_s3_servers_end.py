"""The S3 servers of the tests leave no process behind, whatever becomes of their start."""

import signal
from pathlib import Path

import pytest

from tests.support.needs import needs
from tests.support.s3.server import S3Server


class Broken(S3Server):
    """A server of two processes: one that runs, and its front, which does not."""

    def __init__(self, directory: Path, front: str) -> None:
        super().__init__(directory, [])
        self._front = front

    def launch(self) -> None:
        """See `S3Server.launch`."""
        self.spawn("part", "sleep", 1000)
        self.spawn("front", needs(self._front, "nothing"), 0)


@pytest.mark.parametrize("front", ["false", "a-program-that-nobody-has"])
def test_a_server_that_does_not_start_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front: str
) -> None:
    monkeypatch.delenv("CI", raising=False)
    server = Broken(tmp_path / "broken", front)
    with pytest.raises((AssertionError, pytest.skip.Exception)):
        server.__enter__()
    assert server._processes["part"].returncode == -signal.SIGKILL
