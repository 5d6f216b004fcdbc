"""Pre-signed URLs: the API issues them, and the object store accepts them as S3 does."""

import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

_MANY = 10_000
"""Signatures from which on expired ones are forgotten, to be refused as wrong instead."""


class Refused(Exception):
    """The object store refuses, with S3's status and code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(slots=True)
class _Grant:
    key: str
    deadline: float
    uses_left: int | None


class Grants:
    """The valid signatures. They are random and looked up here; from outside they look like real ones."""

    def __init__(self) -> None:
        self._grants: dict[str, _Grant] = {}

    def issue(self, key: str, lifetime: float, uses: int | None) -> str:
        """Return the query of a URL for GET of `key`, valid for `lifetime` seconds and `uses` answers (None: any)."""
        now = time.monotonic()
        signature = secrets.token_hex(32)
        if len(self._grants) >= _MANY:
            self._grants = {known: grant for known, grant in self._grants.items() if grant.deadline > now}
        self._grants[signature] = _Grant(key, now + lifetime, uses)
        seconds = max(1, math.ceil(lifetime))
        signed_at = datetime.now(UTC) + timedelta(seconds=lifetime - seconds)
        return urlencode(
            {
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Credential": f"AKIASIMULATED/{signed_at:%Y%m%d}/us-east-1/s3/aws4_request",
                "X-Amz-Date": f"{signed_at:%Y%m%dT%H%M%SZ}",
                "X-Amz-Expires": seconds,
                "X-Amz-SignedHeaders": "host",
                "X-Amz-Signature": signature,
            }
        )

    def admit(self, method: str, key: str, query: Mapping[str, str], authorization: str | None) -> None:
        """Use the grant once for this request.

        Raises:
            Refused: there is another credential, the method is not GET, the signature is missing, wrong or used up.
        """
        signature = query.get("X-Amz-Signature")
        if authorization is not None:
            if signature is None:
                raise Refused(403, "AccessDenied", "Access Denied")
            raise Refused(
                400,
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string "
                "parameter or the Authorization header should be specified",
            )
        if signature is None:
            raise Refused(403, "AccessDenied", "Access Denied")
        grant = self._grants.get(signature)
        if method != "GET" or grant is None or grant.key != key:
            raise Refused(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
            )
        if time.monotonic() >= grant.deadline or grant.uses_left == 0:
            raise Refused(403, "AccessDenied", "Request has expired")
        if grant.uses_left is not None:
            grant.uses_left -= 1
