"""The time of day as a process sees it, set while it runs (libfaketime); its steady clocks go on as they do."""

from pathlib import Path

from tests.support.needs import needs


class WallClock:
    """What its `environ` makes of a process: its time of day is the machine's, and what it is set to by `step`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.step(0)
        needs("faketime", "sudo apt-get install faketime")
        library = next(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # as versions before 0.9.10 call it
            "NO_FAKE_STAT": "1",
        }

    def step(self, seconds: int) -> None:
        """Set it to be that many seconds ahead of the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)
