"""Who asks: the credential and the ids that travel with a request to upstream, and nowhere else."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Caller:
    """A client, or the mirror itself.

    `authorization` is the value of the header of that name, whole (`Bearer …`, `Token …`), or None. It is a secret: not
    in `repr`, and never written anywhere. `trace` is the official client's `X-DataRobot-Api-Consumer-Trace`.
    """

    authorization: str | None = field(repr=False)
    request_id: str
    trace: str | None = None
