"""An engine is never shown an end of the image that is not its end."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from mirror.cli.container_engines import Loader
from mirror.common.progress import Lines
from mirror.model.errors import Unheard


def test_an_engine_is_stopped_and_gets_no_end_of_the_image_when_the_reader_of_our_output_leaves(tmp_path: Path) -> None:
    archive, ended = tmp_path / "archive", tmp_path / "ended"
    archive.write_bytes(bytes(8 << 20))
    engine = Loader("docker", ("/bin/sh", "-c", 'cat > /dev/null && touch "$0"', str(ended)))
    reader, writer = os.pipe()
    seconds: list[float] = []

    def clock() -> float:
        if len(seconds) == 1:  # the first line was read
            os.close(reader)
        seconds.append(10.0 * len(seconds))
        return seconds[-1]

    with suppress(BrokenPipeError), os.fdopen(writer, "w") as output, pytest.raises(Unheard):
        engine.load(archive, Lines(output, clock))
    assert len(seconds) > 1
    assert not ended.exists()
