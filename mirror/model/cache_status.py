"""Says how an answer came about: to clients as `Cache-Status` (RFC 9211), and to metrics as a label."""

from enum import Enum, unique


@unique
class CacheStatus(Enum):
    """How an answer came about.

    `words` is what the log says, `header` the value of `Cache-Status`, `label` what metrics call it.
    """

    HIT = "hit", "hit"
    """The mirror had it: a stored image, or metadata that is fresh enough."""

    STALE = "hit; detail=stale", "stale"
    """The mirror had it, and upstream could not say whether it is current."""

    STORED = "fwd=miss; stored", "stored"
    """A fill was begun for this request; the image is stored when it is whole."""

    COLLAPSED = "fwd=miss; collapsed", "collapsed"
    """This request joined a fill that was already running, here or in another process."""

    BYPASS = "fwd=bypass", "bypass"
    """It is passed through and not stored."""

    REFRESHED = "fwd=stale", "refreshed"
    """Metadata that upstream was asked for, because what was known was too old."""

    MISS = "fwd=miss", "miss"
    """Metadata that upstream was asked for, because nothing was known; an image that a HEAD request does not begin."""

    def __init__(self, words: str, label: str) -> None:
        self.words = words
        self.label = label
        self.header = f"pps-mirror; {words}"

    @property
    def is_hit(self) -> bool:
        """Whether upstream had to send nothing for this answer alone."""
        return self in {CacheStatus.HIT, CacheStatus.STALE, CacheStatus.COLLAPSED}


OF_DOWNLOADS = tuple(each for each in CacheStatus if each not in {CacheStatus.REFRESHED, CacheStatus.MISS})
"""Those that an answer with bytes of an image can have."""
