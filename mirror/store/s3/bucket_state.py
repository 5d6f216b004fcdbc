"""The states of a fill with regard to the bucket that mirrors share, and which may follow which.

    CHOOSING ─▶ READING | FOLLOWING | FETCHING | ALONE | CUT_OFF    as the bucket and the lease are found
    each of them but FETCHING ─▶ CHOOSING                           the stream broke, or has to come from elsewhere
    READING, FOLLOWING ─▶ CUT_OFF                                   the bucket fails before it gives a byte
    FETCHING ─▶ SUPERSEDED ─▶ CHOOSING                              another mirror took the lease over
    FETCHING ─▶ NAMING ─▶ DONE                                      all bytes are verified
    the others ─▶ SETTLING ─▶ NAMING ─▶ DONE                        the same, without the lease
    all ─▶ DONE                                                     the bytes were wrong, or the journal is closed
    DONE ─▶ CHOOSING                                                the fill goes on without its journal

`mirror.store.s3.coordinator` moves a fill from one to the next.
"""

from collections.abc import Mapping
from enum import StrEnum


class BucketState(StrEnum):
    """What a fill has to do with the bucket now."""

    CHOOSING = "choosing"
    """Nothing is read; nobody has been found yet that has the bytes."""
    READING = "reading"
    """The image is in the bucket, and is read there."""
    FOLLOWING = "following"
    """Another mirror has the lease, or had it: its parts are read."""
    FETCHING = "fetching"
    """This fill has the lease, if there are leases: it asks upstream for all mirrors, and uploads what arrives."""
    SUPERSEDED = "superseded"
    """It did, and another mirror has taken the lease over; its own upload ends as soon as that is noticed."""
    ALONE = "alone"
    """It asks upstream and uploads nothing: it has no journal for that, or the bucket has no room."""
    CUT_OFF = "cut off"
    """The same because the bucket fails: it looks now and then whether it still does."""
    SETTLING = "settling"
    """All is verified; whichever mirror has the lease names the image, or this one as soon as nobody has it."""
    NAMING = "naming"
    """All is verified, and this fill has the lease: it completes its upload."""
    DONE = "done"
    """Nothing is uploaded any more. A fill that goes on without its journal chooses once more, and only reads."""


CHOOSING, READING, FOLLOWING, FETCHING, SUPERSEDED, ALONE, CUT_OFF, SETTLING, NAMING, DONE = BucketState

UPLOADING = frozenset({FETCHING, SUPERSEDED, NAMING})
"""States in which the fill has an upload of its own."""

NOT_FROM_THE_OBJECT = frozenset({FOLLOWING, FETCHING, ALONE, CUT_OFF})
"""States whose bytes come from another place than the image's object."""

NEXT: Mapping[BucketState, frozenset[BucketState]] = {
    CHOOSING: frozenset({CHOOSING, READING, FOLLOWING, FETCHING, ALONE, CUT_OFF, SETTLING, DONE}),
    READING: frozenset({CHOOSING, CUT_OFF, SETTLING, DONE}),
    FOLLOWING: frozenset({CHOOSING, CUT_OFF, SETTLING, DONE}),
    FETCHING: frozenset({SUPERSEDED, NAMING, DONE}),
    SUPERSEDED: frozenset({CHOOSING, SETTLING, DONE}),
    ALONE: frozenset({CHOOSING, SETTLING, DONE}),
    CUT_OFF: frozenset({CHOOSING, SETTLING, DONE}),
    SETTLING: frozenset({NAMING, DONE}),
    NAMING: frozenset({DONE}),
    DONE: frozenset({CHOOSING, DONE}),
}
"""Which state may follow which."""
