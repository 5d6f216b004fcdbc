"""Explains what is wrong with a bucket to the person who has to fix it, without naming a credential or a signature."""

import errno
import ssl

import aiohttp
from botocore import exceptions as boto

from mirror.store.base import StoreUnavailable

TROUBLE = (boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, TimeoutError, OSError)
"""Everything that a request to a bucket may raise."""

_WORDS = {
    "NoSuchBucket": "there is no such bucket; check store.s3.bucket, and store.s3.region on AWS",
    "InvalidAccessKeyId": "the server does not know our access key; check the credentials in the environment",
    "SignatureDoesNotMatch": "the server refuses our secret key; check the credentials in the environment",
    "ExpiredToken": "our credentials have expired and were not renewed",
    "ExpiredTokenException": "our credentials have expired and were not renewed",
    "InvalidToken": "the server refuses our session token; the credentials may have been rotated",
    "TokenRefreshRequired": "our credentials have expired and were not renewed",
    "AccessDenied": "our credentials do not allow {operation}; docs/s3.md lists what they must allow",
    "403": "our credentials do not allow {operation}, or are wrong; docs/s3.md lists what they must allow",
    "AllAccessDisabled": "the bucket has been disabled by its provider",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's; set it by NTP",
    "SlowDown": "the server asks us to slow down",
    "ServiceUnavailable": "the server is overloaded or under maintenance",
    "503": "the server is overloaded or under maintenance",
    "InternalError": "the server has an error of its own",
    "QuotaExceeded": "the bucket is full (quota)",
    "EntityTooLarge": "the server does not take objects of that size",
    "PermanentRedirect": "the bucket is in another region; set store.s3.region",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set store.s3.region",
    "301": "the bucket is in another region; set store.s3.region",
}

_FOUND = (
    *(
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.MetadataRetrievalError,
    ),
    *(boto.ProfileNotFound, boto.ConfigParseError, boto.NoRegionError, boto.SSLError, boto.SSOError),
    *(boto.TokenRetrievalError, boto.NoAuthTokenError),
)
_FOUND_CODES = frozenset(
    {
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "UnrecognizedClientException"),
        *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"),
        *("AccessDenied", "AccessDeniedException", "401", "403"),
        *("PermanentRedirect", "AuthorizationHeaderMalformed", "301"),
    }
)


class BucketFailed(StoreUnavailable):
    """The bucket gave no usable answer. `code` is S3's error code, or None when nothing answered."""

    passes = True

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class NoRoom(BucketFailed):
    """The bucket has no room for an image within `store.s3.max_size`, and nothing may be evicted for it."""

    passes = False


def is_of_what_was_found(error: Exception) -> bool:
    """Return whether the cause may be that our credentials, region or CA have changed since we looked for them."""
    if isinstance(error, boto.ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) in _FOUND_CODES
    return isinstance(error, _FOUND) or _is_of_ca(error)


def failed(error: Exception, bucket: str, operation: str) -> BucketFailed:
    """Turn what a request raised into words."""
    code = None
    if isinstance(error, boto.ClientError):
        answer = error.response.get("Error", {})
        code = str(answer.get("Code", "")) or None
        words = _WORDS.get(code or "", "the server answered {code} to {operation}")
        said = words.format(operation=operation, code=_plain(code or "an error"))
    else:
        said = _said(error)
    return BucketFailed(f"the bucket {bucket} cannot be used: {said}", code)


def _said(error: Exception) -> str:
    if isinstance(error, _FOUND):
        return _said_of_found(error)
    match error:
        case boto.ReadTimeoutError() | boto.ConnectTimeoutError() | TimeoutError():
            return "the server does not answer"
        case boto.EndpointConnectionError() | aiohttp.ClientConnectorError() | boto.ProxyConnectionError():
            return "the server cannot be reached"
        case OSError(errno=number) if number is not None:
            return f"the connection failed ({errno.errorcode.get(number, number)})"
        case boto.HTTPClientError() if _is_of_ca(error):
            return "AWS_CA_BUNDLE names a file that cannot be read, or that has no certificate"
        case boto.HTTPClientError(kwargs={"error": Exception() as inner}):
            return f"the connection broke ({type(inner).__name__})"
        case _:
            return f"the connection broke ({type(error).__name__})"


def _is_of_ca(error: Exception) -> bool:
    """Return whether our CA file could not be used; it is read at the first connection."""
    inner = error.kwargs.get("error") if isinstance(error, boto.HTTPClientError) else None
    return isinstance(inner, FileNotFoundError | PermissionError | IsADirectoryError | ssl.SSLError)


def _said_of_found(error: Exception) -> str:
    match error:
        case boto.ProfileNotFound():
            return "the profile that AWS_PROFILE names does not exist"
        case boto.ConfigParseError():
            return "the file of AWS's credentials or configuration cannot be read; look for what is wrong in it"
        case boto.NoRegionError():
            return "no region is known; set store.s3.region"
        case boto.SSLError():
            return "its certificate is not trusted; AWS_CA_BUNDLE names the file of a private CA"
        case _:
            return (
                "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the role "
                "of the machine or service account"
            )


def _plain(code: str) -> str:
    """Make a text from outside fit on one line."""
    return code[:60] if code.isascii() and code.isprintable() else "an error"
