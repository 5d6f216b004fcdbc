"""Signals as calls in the event loop, or as the interrupt that Ctrl-C is; and how a process ends by one.

As the first process of a container no signal ends us by itself: the kernel drops those that process 1 has no handler
for. So what a signal would do by default is done by our own hand there.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGTERM, signal.SIGINT)


def on_signal(number: signal.Signals, callback: Callable[[], None]) -> None:
    """Call `callback` in the running loop, once for each such signal.

    asyncio alone may lose one: what it learns of a signal by is a byte in the pipe that wakes its loop for threads too,
    and when hundreds of downloads end at once that pipe is full. So asyncio's part is to wake the loop, which a full
    pipe does as well, and Python's own handler calls.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(number, lambda: None)
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))


async def stop_requested() -> None:
    """Wait for the first SIGTERM or SIGINT; from then on another one ends the process at once."""
    stop = asyncio.Event()
    for number in STOPPING:
        on_signal(number, stop.set)
    await stop.wait()
    for number in STOPPING:
        asyncio.get_running_loop().remove_signal_handler(number)
        _obey(number)


def hear_keeper(heard: Callable[[bytes], None]) -> None:
    """Give each line of standard input to `heard`; take its end for a SIGTERM: whoever started this process is no more.

    What was read from it before must have ended with a line.
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


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do inside what Ctrl-C does: all is put in order on the way out, and then the process ends by it.

    A second one is like another Ctrl-C, as `timeout` sends two at once; the third ends the process there and then.
    """
    came = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came == 2:
            _obey(signal.SIGTERM)
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background job ignores it
            raise KeyboardInterrupt
        handler(number, frame)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if came:
            _end_by(signal.SIGTERM)
        raise
    finally:
        _obey(signal.SIGTERM)  # nothing is left to put in order


def _obey(number: signal.Signals) -> None:
    """Have the next such signal end the process at once."""
    if os.getpid() == 1:
        signal.signal(number, lambda *_: os._exit(128 + number))
    else:
        signal.signal(number, signal.SIG_DFL)


def _end_by(number: signal.Signals) -> NoReturn:
    """End as that signal does where nothing handles it."""
    with suppress(OSError):
        sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
