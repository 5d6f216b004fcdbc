"""The values and exceptions that stand for a bucket's answers in the rest of the folder."""

from dataclasses import dataclass
from datetime import datetime


class ConditionFailed(Exception):
    """Another writer was first."""


class NotSupported(Exception):
    """The server does not support what was asked for."""


class ObjectGone(Exception):
    """There is no such object, or not in that version."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an object: its `etag` as the server wrote it, its `size` in bytes, and when it was written."""

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
    """A small object: its bytes, its version, and the time at the server."""

    data: bytes
    version: Version
    now: datetime


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that was neither completed nor aborted."""

    name: str
    upload: str
    began: datetime
