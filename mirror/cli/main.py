"""The command line: parses arguments, calls the command, and makes one line and an exit status of any error.

Exit status: 0 done, 1 failed, 2 usage or configuration, 130 interrupted. SIGTERM ends it as Ctrl-C does.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from mirror.cli.commands import COMMANDS
from mirror.cli.parser import build_parser
from mirror.model.errors import ConfigError, MirrorError, Unheard, UsageError, no_thread
from mirror.process import standard_streams
from mirror.process.interrupt import interrupted_by_sigterm


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. An error is one line on standard error."""
    standard_streams.settle()
    try:
        options = _parsed(arguments)
        with interrupted_by_sigterm():
            status = COMMANDS[options.command](options)
            sys.stdout.flush()
    except (ConfigError, UsageError) as error:
        return _complain(str(error), 2)
    except MirrorError as error:
        return _complain(error.message, 1)
    except (BrokenPipeError, Unheard) as error:
        _give_up(sys.stdout)
        reason = error.__cause__ or error
        if isinstance(reason, BrokenPipeError):  # the reader has left on purpose
            return 1
        return _complain(f"standard output cannot be written: {reason}", 1)
    except OSError as error:
        return _complain(str(error), 1)
    except RuntimeError as error:
        if (said := no_thread(error)) is None:
            raise
        return _complain(said.message, 1)
    except KeyboardInterrupt:
        return 130
    return status


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments. Help and version are printed here, and end the process (SystemExit)."""
    try:
        return build_parser().parse_args(arguments)
    except (SystemExit, BrokenPipeError) as ended:  # from Python 3.11.3 on argparse ignores errors of its own output
        try:
            sys.stderr.flush()  # argparse has written there what is wrong
        except OSError:
            _give_up(sys.stderr)
            if isinstance(ended, BrokenPipeError):
                raise SystemExit(2) from None
        raise
    finally:
        sys.stdout.flush()


def _complain(text: str, status: int) -> int:
    try:
        print(f"pps-mirror: {text}".encode("ascii", "backslashreplace").decode(), file=sys.stderr)
    except OSError:  # it is not read, but the exit status says the same
        _give_up(sys.stderr)
    return status


def _give_up(stream: TextIO) -> None:
    """Keep the interpreter from flushing a stream again that cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
