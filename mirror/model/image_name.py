"""Says what is a valid repository name and a valid tag, as container registries define them."""

import re

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")

LONGEST = 255
"""The most characters of a repository's name."""


def is_repository(text: str) -> bool:
    """Whether `text` can name a repository (OCI Distribution Specification, "Pulling manifests")."""
    return len(text) <= LONGEST and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether `text` can be a tag."""
    return _TAG.fullmatch(text) is not None
