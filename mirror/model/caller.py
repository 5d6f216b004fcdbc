"""The caller: the credential and the ids that travel with a request to upstream, and nowhere else."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Caller:
    """A client, or the mirror itself.

    `authorization` is the value of the header of that name, whole (`Bearer …`, `Token …`), or None. It is a secret: not
    in `repr`, and never written anywhere. `trace` is the official client's `X-DataRobot-Api-Consumer-Trace`; `came_by`
    says through which caches the request came (see `mirror.upstream.loop_detection`). `who` is for people: how the
    log and the status page name the caller for whom a fill began.
    """

    authorization: str | None = field(repr=False)
    request_id: str
    trace: str | None = None
    came_by: str = ""
    who: str = "the mirror"

    def stripped(self) -> "Caller":
        """Return the caller without its credential, which upstream must not see."""
        return replace(self, authorization=None)


class OwnCredential:
    """The mirror's own credential. All users of it hold this one object, so that it can be exchanged while they run."""

    def __init__(self, token: str | None) -> None:
        self.take(token)

    def take(self, token: str | None) -> None:
        """Use another token from now on; None: the mirror has none."""
        self._authorization = f"Bearer {token}" if token else None

    def lend(self, caller: Caller) -> Caller:
        """Return the caller with the mirror's credential in place of its own; unchanged when the mirror has none."""
        return replace(caller, authorization=self._authorization) if self._authorization else caller
