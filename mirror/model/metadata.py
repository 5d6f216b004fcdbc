"""Upstream's metadata of an image: parsed, validated, with its raw bytes.

The raw body is what clients get, byte for byte; the parsed fields are what the mirror itself relies on. Other
fields may be missing, and unknown ones are kept, because the body is never rewritten.
"""

import codecs
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mirror.model.errors import BadUpstream

MAX_BODY = 256 << 10
"""Bytes of metadata read at most: the real thing is under 1 KiB."""

MAX_IMAGE = 5 << 40
"""Largest believable `imageSize` in bytes: 5 TiB, the largest object of any S3 store."""

_HASH = re.compile(r"[0-9a-f]{64}")


def is_hash(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hex; asked before a hash touches a path or a key."""
    return _HASH.fullmatch(text) is not None


def _hash(text: str) -> str:
    if not is_hash(lowered := text.lower()):
        raise ValueError("64 hexadecimal digits expected")
    return lowered


def _date_time(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("an ISO 8601 date-time expected")
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("an ISO 8601 date-time expected") from None
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    if not 1970 < aware.year < 9000:
        raise ValueError("a year between 1971 and 8999 expected")
    return aware


class _Wire(BaseModel):
    """The metadata answer of the public API, `/mlops/portablePredictionServerImage/metadata/`, as it is on the wire."""

    model_config = ConfigDict(strict=True, extra="ignore")

    hash: Annotated[str, AfterValidator(_hash)]
    hashAlgorithm: Literal["SHA256"]  # noqa: N815 - upstream's name
    imageSize: Annotated[int, Field(gt=0, le=MAX_IMAGE)]  # noqa: N815
    filename: str
    created: Annotated[datetime, BeforeValidator(_date_time)]
    baseImageId: str | None = None  # noqa: N815
    datarobotRuntimeImageTag: str | None = None  # noqa: N815
    dockerImageId: str | None = None  # noqa: N815
    shortDockerImageId: str | None = None  # noqa: N815


class UnusableMetadata(BadUpstream):
    """Something that should be an image's metadata is not; `reason` says why, wherever it came from."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"upstream's image metadata is unusable: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """One image as upstream describes it. `size` in bytes, `created` with its time zone, `raw` the body as received."""

    hash: str
    size: int
    filename: str
    created: datetime
    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "ImageMetadata":
        """Read upstream's body; a byte order mark before it is kept, as all of it is.

        Raises:
            UnusableMetadata: it is not JSON, or a field is missing or malformed; the message names the field.
        """
        try:
            wire = _Wire.model_validate_json(raw.removeprefix(codecs.BOM_UTF8))
        except ValidationError as error:
            raise UnusableMetadata(_explain(error)) from None
        return cls(hash=wire.hash, size=wire.imageSize, filename=wire.filename, created=wire.created, raw=raw)


def _explain(error: ValidationError) -> str:
    """Name the first bad field and what is wrong with it, without quoting what upstream sent."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if not first["loc"]:
        return "it is not a JSON object"
    if first["type"] == "missing":
        return f"field '{first['loc'][0]}' is missing"
    return f"field '{first['loc'][0]}': {first['msg'].removeprefix('Value error, ')}"
