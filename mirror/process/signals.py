"""Turns signals into calls in the event loop, in processes that serve."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable

from mirror.process.interrupt import end_at_next

STOPPING = (signal.SIGTERM, signal.SIGINT)


def on_signal(number: signal.Signals, callback: Callable[[], None]) -> None:
    """Call `callback` in the running loop, once for each such signal.

    asyncio alone may lose a signal. It learns of one by a byte in the pipe through which threads wake the loop as well,
    and when hundreds of downloads end at once that pipe is full. So asyncio only wakes the loop, which a full pipe does
    too, and Python's own handler makes the call.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(number, lambda: None)
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))


async def stop_requested() -> None:
    """Wait for the first SIGTERM or SIGINT. A second one then ends the process at once."""
    stop = asyncio.Event()
    for number in STOPPING:
        on_signal(number, stop.set)
    await stop.wait()
    for number in STOPPING:
        asyncio.get_running_loop().remove_signal_handler(number)
        end_at_next(number)


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
