"""One of several processes that serve clients; see `mirror.workers`, which starts it.

Its argument, if it has one, is the descriptor of a socket to serve instead of listening itself.
"""

import asyncio
import json
import logging
import os
import sys

from mirror import log
from mirror.config import Config
from mirror.errors import ConfigError, MirrorError
from mirror.serving import serve_as_worker
from mirror.systemd import listening_socket


def main() -> int:
    """Serve until told to stop, or until nobody keeps us any more; the exit status."""
    config = Config.model_validate(json.loads(sys.stdin.buffer.readline()))
    verbosity = log.set_up(config.log)
    try:
        passed = listening_socket(int(sys.argv[1]), "clients") if sys.argv[1:] else None
        asyncio.run(serve_as_worker(config, os.environ, verbosity, _say, passed))
    except (ConfigError, MirrorError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
