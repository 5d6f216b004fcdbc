"""How long a store over a bucket waits for what, in seconds. Every `Bucket` has them; only tests need others."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds."""

    answer: float = 15.0
    """For a request without a large body, including all retries: clients may be waiting."""

    spared: float = 5.0
    """Between two attempts, made in the background, to find out whether a server that is away is back."""

    credentials: float = 5.0
    """Between two searches for other credentials, however many requests are refused."""

    remembered: float = 2.0
    """For which the version of an object is remembered before the bucket is asked again."""

    lease: float = 30.0
    """For which a lease is valid unless renewed."""

    renew: float = 10.0
    """Between two renewals of a lease when there is nothing new to say."""

    follow: float = 0.5
    """Between two checks of how far another mirror is."""

    settle: float = 1.0
    """Between two checks whether another mirror has finished."""

    cut_off: float = 10.0
    """After which a fill that is cut off checks whether the bucket still fails."""

    flush: float = 5.0
    """After which a part that a slow line has not filled yet is written as it is, for the mirrors that follow."""

    landing: float = 30.0
    """That uploading a part may take before the bucket counts as failing, and the fill goes on without it."""

    publishing: float = 20.0
    """That readers wait for the image to get its name in the bucket; its bytes are verified already."""

    first_round: float = 60.0
    """Before the bucket is maintained for the first time; up to half as much is added, so that replicas do not act in
    step."""

    round: float = 3600.0
    """Between two rounds of maintenance; likewise."""

    lately: float = 900.0
    """For which an image that was stored, or served by any replica, counts as being served."""

    mark: float = 300.0
    """After which an image that is being served is marked again."""

    turn: float = 10.0
    """To wait while another replica evicts; then we evict too."""

    turn_pause: float = 0.5
    """Between two checks whether it still does."""
