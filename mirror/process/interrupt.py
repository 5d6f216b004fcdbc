"""SIGTERM as the interrupt that Ctrl-C is, and how a process ends by a signal.

As the first process of a container no signal ends us by itself: the kernel drops those that process 1 has no handler
for. So we do there what a signal does elsewhere. Every command needs this, so it imports nothing large.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn


def end_at_next(number: signal.Signals) -> None:
    """Have the next such signal end the process at once."""
    if os.getpid() == 1:
        signal.signal(number, lambda *_: os._exit(128 + number))
    else:
        signal.signal(number, signal.SIG_DFL)


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
            end_at_next(signal.SIGTERM)
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
        end_at_next(signal.SIGTERM)  # nothing is left to put in order


def _end_by(number: signal.Signals) -> NoReturn:
    """End as that signal does where nothing handles it."""
    with suppress(OSError):
        sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
