"""What a transfer says of itself in a pipe."""

import io

from mirror.common.progress import Lines

MIB = 1 << 20


def test_a_pipe_gets_a_line_at_the_start_and_then_at_most_one_every_five_seconds() -> None:
    now = 100.0
    stream = io.StringIO()
    meter = Lines(stream, lambda: now)
    meter.start(60 * MIB, 10 * MIB, "receiving")
    for _ in range(100):  # ten seconds at 2 MiB/s
        now += 0.1
        meter.show(10 * MIB + int((now - 100) * 2 * MIB), "receiving")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "receiving: 10.0 MiB of 60.0 MiB (16 %)"
    assert len(lines) in {2, 3}
    assert lines[1].startswith("receiving: 20.")
    assert "2.0 MiB/s" in lines[1]
    assert lines[1].endswith(" left")


def test_a_transfer_that_stands_still_has_no_time_left_to_show() -> None:
    now = 0.0
    stream = io.StringIO()
    meter = Lines(stream, lambda: now)
    meter.start(60 * MIB, 30 * MIB, "receiving")
    now = 6.0
    meter.show(30 * MIB, "retrying")
    assert stream.getvalue().splitlines()[1] == "retrying: 30.0 MiB of 60.0 MiB (50 %), 0 B/s"
