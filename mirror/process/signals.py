"""Turns signals into calls in the event loop or into a KeyboardInterrupt, and ends the process by them.

The kernel ignores signals for which process 1 has no handler, and in a container we are process 1. So there we
carry out ourselves what a signal does by default.
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
        _obey(number)


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


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Make SIGTERM act as Ctrl-C inside, so that everything is cleaned up before the process ends by it.

    A second SIGTERM is like another Ctrl-C, because `timeout` sends two at once; a third ends the process immediately.
    """
    came = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came == 2:
            _obey(signal.SIGTERM)
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # it is ignored in a background job of a shell
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
        _obey(signal.SIGTERM)  # nothing is left to clean up


def _obey(number: signal.Signals) -> None:
    """Let the next such signal end the process at once."""
    if os.getpid() == 1:
        signal.signal(number, lambda *_: os._exit(128 + number))
    else:
        signal.signal(number, signal.SIG_DFL)


def _end_by(number: signal.Signals) -> NoReturn:
    """End the process as an unhandled signal does."""
    with suppress(OSError):
        sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
