"""The errors that clients and users see, each with its HTTP status.

They are raised deep, and rendered once at the edge (`mirror.http.errors`, `mirror.cli.main`). A message says what
happened and what to do; it is ASCII and never carries a token, a query string or a path of the store.
"""

from collections.abc import Mapping


class ConfigError(Exception):
    """The configuration cannot be used; `str()` is the one line the user reads. Exit status 2."""


class UsageError(Exception):
    """The command line cannot be used; `str()` is the one line the user reads. Exit status 2."""


class Unheard(Exception):
    """Our output cannot be written; `__cause__` is why. No OSError, so that no medium or store is blamed."""


class MirrorError(Exception):
    """A request that cannot be answered as asked.

    `status` is the HTTP status, `retry_after` whole seconds for the header of that name, or None.
    """

    status = 500

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class BadRequest(MirrorError):
    """The client's request makes no sense to us."""

    status = 400


class HeadersTooLarge(MirrorError):
    """The request's header fields are longer than any client should need."""

    status = 431


class Unauthorized(MirrorError):
    """The request carries no credential, or one that the local policy does not know."""

    status = 401


class Forbidden(MirrorError):
    """Somebody other than the person in whose name the request is sent may have made it."""

    status = 403


class NotFound(MirrorError):
    """There is no such route or image here."""

    status = 404


class BadUpstream(MirrorError):
    """Upstream answered nonsense: bad metadata, wrong bytes before any was sent, a refused redirect."""

    status = 502


class LoopDetected(BadUpstream):
    """Requests toward upstream come back to a mirror that sent them (RFC 5842 section 7.2, RFC 8586)."""

    status = 508


class Unavailable(MirrorError):
    """Upstream or the store is unavailable, and nothing can be served in the meantime."""

    status = 503

    def __init__(self, message: str, *, retry_after: int = 10) -> None:
        super().__init__(message, retry_after=retry_after)


class AddressUnavailable(MirrorError):
    """An address cannot be listened on now, but maybe later. Exit status 1, so that a service manager tries again."""

    status = 503


class UpstreamTimeout(MirrorError):
    """Upstream did not answer in time."""

    status = 504

    def __init__(self, message: str, *, retry_after: int = 10) -> None:
        super().__init__(message, retry_after=retry_after)


class UpstreamRefused(MirrorError):
    """Upstream's own 401, 403, 404 or 429, which passes through with its body and the headers that matter."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str], *, retry_after: int | None = None) -> None:
        super().__init__(f"upstream answered {status}", retry_after=retry_after)
        self.status = status
        self.body = body
        self.headers = headers


def no_thread(error: RuntimeError) -> MirrorError | None:
    """Return an error in our own words if the system lets Python start no thread; None for any other error."""
    if str(error) != "can't start new thread":
        return None
    return MirrorError("this user may start no more threads or processes here: raise its limit (ulimit -u)")
