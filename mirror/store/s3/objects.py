"""What a bucket answers, as values and exceptions that the rest of the folder uses."""

from dataclasses import dataclass
from datetime import datetime


class ConditionFailed(Exception):
    """Another writer was first."""


class NotSupported(Exception):
    """The server does not know what was asked for."""


class ObjectGone(Exception):
    """There is no such object, or not that version of it."""


@dataclass(frozen=True, slots=True)
class Version:
    """One state of an object: its `etag` as the server wrote it, `size` in bytes, when it was written."""

    etag: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing; `name` is its key without the prefix."""

    name: str
    version: Version


@dataclass(frozen=True, slots=True)
class Answer:
    """A small object: its bytes, its version, and what time it was at the server."""

    data: bytes
    version: Version
    now: datetime


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that was neither completed nor aborted."""

    name: str
    upload: str
    began: datetime
