"""Turns SIGTERM into a KeyboardInterrupt, and ends the process by a signal.

The kernel ignores signals for which process 1 has no handler, and in a container we are process 1. So there we
carry out ourselves what a signal does by default. Every command needs this, so it imports nothing large.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn


def end_at_next(number: signal.Signals) -> None:
    """Let the next such signal end the process at once."""
    if os.getpid() == 1:
        signal.signal(number, lambda *_: os._exit(128 + number))
    else:
        signal.signal(number, signal.SIG_DFL)


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
            end_at_next(signal.SIGTERM)
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
        end_at_next(signal.SIGTERM)  # nothing is left to clean up


def _end_by(number: signal.Signals) -> NoReturn:
    """End the process as an unhandled signal does."""
    with suppress(OSError):
        sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
