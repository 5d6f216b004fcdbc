"""`python -m mirror.simulator`: start a simulator by hand, or under `client.py`."""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mirror.common.units import parse_rate
from mirror.simulator.images import ImageSpec
from mirror.simulator.server import run
from mirror.simulator.setup import Setup


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; with `--state -` also until standard input ends."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    state, images = options.pop("state"), options.pop("image")
    try:
        setup = replace(_read(state), **{name: value for name, value in options.items() if value is not None})
        if images:
            setup = replace(setup, images=tuple(ImageSpec(path.stem, path=str(path)) for path in images))
        asyncio.run(_serve(setup, until_input_ends=state == "-"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        sys.stderr.write(f"simulator: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mirror.simulator", description=__doc__)
    parser.add_argument("--state", metavar="FILE.json", help="options as in setup.py; '-' is the first line of stdin")
    parser.add_argument(
        "--image", action="append", type=Path, metavar="PATH", help="an image; several times for several"
    )
    parser.add_argument("--current", metavar="NAME", help="the image handed out first, or 'none'")
    parser.add_argument("--token", action="append", dest="tokens", metavar="TOKEN", help="accepted; several times")
    parser.add_argument("--forbid", action="append", dest="forbidden", metavar="TOKEN", help="answered 403")
    parser.add_argument("--host")
    parser.add_argument("--store-name", metavar="HOST", help="the store's host in redirects, if not --host")
    parser.add_argument("--api-port", type=int)
    parser.add_argument("--store-port", type=int)
    parser.add_argument("--rate", type=parse_rate, metavar="50MB/s", help="for all connections together")
    parser.add_argument("--connection-rate", type=parse_rate, metavar="5MB/s", help="for each connection")
    parser.add_argument("--url-lifetime", type=float, metavar="SECONDS", help="of a pre-signed URL")
    parser.add_argument("--tls-cert", metavar="PEM")
    parser.add_argument("--tls-key", metavar="PEM")
    return parser


def _read(state: str | None) -> Setup:
    if state is None:
        return Setup()
    if state != "-":
        return Setup.from_json(json.loads(Path(state).read_text()))
    # Unbuffered, because a thread that waits for more would keep a buffer's lock beyond the interpreter's end.
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        return Setup.from_json(json.loads(stdin.readline()))


async def _serve(setup: Setup, *, until_input_ends: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_input_ends:  # the process that started us has ended, in whatever way

        def watch() -> None:
            while os.read(0, 1):
                pass
            loop.call_soon_threadsafe(stop.set)

        threading.Thread(target=watch, daemon=True).start()
    await run(setup, stop)


if __name__ == "__main__":
    sys.exit(main())
