"""Checks whether there is a place for temporary files: on a read-only root file system there may be none."""

import tempfile

from mirror.model.errors import UsageError


def need_temporary_files() -> None:
    """Find out before the long part of a command whether its end could write one. Blocks. Raises UsageError."""
    try:
        tempfile.gettempdir()
    except OSError:
        raise UsageError(
            "no directory for temporary files can be written: set TMPDIR to one that can be (in a container, or run "
            "it with --tmpfs /tmp)"
        ) from None
