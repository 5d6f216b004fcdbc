"""Reads a site's own tokens: a file with lines `name:sha256-of-token`.

The tokens themselves are stored nowhere. No message quotes an entry, because a person who mixed up the two has put a
token into the file.
"""

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from mirror.common.log import event
from mirror.model.errors import ConfigError

log = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._@-]{1,64})\s*:\s*(?P<sha256>[0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Names with the digests of their tokens. A name may have several, so that one token can replace another."""

    entries: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Read the file, and warn if others can access it. Blocks. Raises ConfigError with the file and the line."""
        source = f"auth.tokens_file = {str(path)!r}"
        try:
            text = path.read_bytes().decode("utf-8-sig", "replace")
            if path.stat().st_mode & 0o002:
                log.warning(
                    "%s: every user of this machine can write to it; expected mode 0600",
                    source,
                    extra=event("file.exposed"),
                )
        except OSError as error:
            raise ConfigError(f"{source}: cannot read it: {error.strerror or type(error).__name__}") from None
        entries = []
        for number, line in enumerate(text.splitlines(), 1):
            if not (said := line.strip()) or said.startswith("#"):
                continue
            if not (match := _LINE.fullmatch(said)):
                raise ConfigError(
                    f'{source}, line {number}: expected "name:sha256-of-token": a name of ASCII letters, digits and '
                    "._@- (64 at most), a colon, 64 hexadecimal digits; or # and a comment"
                )
            entries.append((match["name"], bytes.fromhex(match["sha256"])))
        if not entries:
            log.warning("%s has no token: nobody may read", source, extra=event("tokens.none"))
        return cls(tuple(entries))

    def name_of(self, token: str) -> str | None:
        """Return the name of this token, None if it has none. The time that takes tells nothing about any entry."""
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for name, known in self.entries:  # all of them, also when one matches
            if hmac.compare_digest(digest, known):
                found = name
        return found
