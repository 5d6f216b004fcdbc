"""Turns signals into calls in the event loop, in processes that serve."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from mirror.process.interrupt import end_at_next

STOPPING = (signal.SIGTERM, signal.SIGINT)


def on_signal(number: signal.Signals, callback: Callable[[], None]) -> None:
    """Call `callback` in the running loop, once for each such signal.

    asyncio alone may lose a signal. It learns of one by a byte in the pipe through which threads wake the loop as well,
    and when hundreds of downloads end at once that pipe is full. So Python's own handler makes the call, and asyncio
    only wakes the loop, which a full pipe does too. It does so for every signal as soon as it handles one; that is
    SIGURG, which nothing sends here and which is ignored anyway, because until `number` had our handler it would
    swallow that.
    """
    loop = asyncio.get_running_loop()

    def heard(*_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process is about to end
            loop.call_soon_threadsafe(callback)

    loop.add_signal_handler(signal.SIGURG, lambda: None)
    signal.signal(number, heard)


def stop_requested() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets from now on. A second one then ends the process at once."""
    requested = asyncio.Event()

    def first() -> None:
        requested.set()
        for number in STOPPING:
            end_at_next(number)

    for number in STOPPING:
        on_signal(number, first)
    return requested


def hear_keeper(heard: Callable[[bytes], None]) -> None:
    """Pass each line of standard input to `heard`; its end means that the first process has ended, and acts as SIGTERM.

    What was read from it before must have ended at a line end.
    """
    loop = asyncio.get_running_loop()
    said = bytearray()

    def read() -> None:
        if not (part := os.read(sys.stdin.fileno(), 65_536)):
            loop.remove_reader(sys.stdin)
            signal.raise_signal(signal.SIGTERM)
        said.extend(part)
        while b"\n" in said:
            line, _, rest = bytes(said).partition(b"\n")
            said[:] = rest
            heard(line)

    loop.add_reader(sys.stdin, read)
