"""A site's own tokens in a file, as `auth.tokens_file` wants them."""

from hashlib import sha256
from pathlib import Path


def write_tokens(path: Path, **tokens: str) -> Path:
    """Write the file anew: a line for each name with the hash of its token."""
    path.write_text("".join(f"{name}:{sha256(token.encode()).hexdigest()}\n" for name, token in tokens.items()))
    path.chmod(0o600)
    return path
