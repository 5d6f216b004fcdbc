"""Makes sure that standard input, output and error are open and accept any character."""

import io
import os
import sys
from typing import Final

_MODES: Final = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)


def settle() -> None:
    """Open closed streams (`>&-`) on /dev/null, and escape characters that the encoding of the others lacks.

    This must come before anything else is opened: a file or a connection that got the number of standard output would
    get what is printed. A second call changes nothing.
    """
    for number, mode in enumerate(_MODES):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest number that is free, and those below this one are not
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or _text(0, "r")  # None if it was closed
    sys.stdout = sys.stdout or _text(1, "w")
    sys.stderr = sys.stderr or _text(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _text(number: int, mode: str) -> io.TextIOWrapper:
    stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as we do
    assert isinstance(stream, io.TextIOWrapper)  # noqa: S101 - such it is in text mode
    return stream
