"""The command line: parses, calls, prints. No logic of its own."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mirror import __version__, app, config, log
from mirror.errors import ConfigError, MirrorError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 done, 1 failed, 2 usage or configuration."""
    parser = argparse.ArgumentParser(prog="pps-mirror", description="A caching mirror for the PPS image.")
    parser.add_argument("--version", action="version", version=f"pps-mirror {__version__}")
    parser.add_argument("-c", "--config", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve")
    serve.add_argument("-c", "--config", type=Path, default=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        settings = config.load(options.config, os.environ)
        log.set_up(settings.log)
        asyncio.run(app.serve(settings, os.environ))
    except ConfigError as error:
        print(f"pps-mirror: {error}", file=sys.stderr)
        return 2
    except MirrorError as error:
        print(f"pps-mirror: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
