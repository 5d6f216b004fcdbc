"""Which certificates are trusted: those of the system's authorities, and of a file that a person names."""

import ssl
from pathlib import Path

from mirror.model.errors import ConfigError


def trust(ca_file: Path | None, named: str) -> ssl.SSLContext:
    """Trust the system's authorities and those in `ca_file`, which errors call as `named`. Blocks.

    Raises ConfigError when the file cannot be used.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError:
            raise ConfigError(f"{named} has no PEM certificates") from None
        except OSError as error:
            raise ConfigError(f"{named} cannot be read: {error.strerror}") from None
    return context
