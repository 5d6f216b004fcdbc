"""Defines the states of a fill with regard to the shared bucket, and which state may follow which.

    CHOOSING ─▶ READING | FOLLOWING | FETCHING | ALONE | CUT_OFF    as the bucket and the lease are found
    each of them but FETCHING ─▶ CHOOSING                           the stream broke, or has to come from elsewhere
    READING, FOLLOWING ─▶ CUT_OFF                                   the bucket fails before it gives a byte
    FETCHING ─▶ SUPERSEDED ─▶ CHOOSING                              another mirror took the lease over
    FETCHING ─▶ NAMING ─▶ DONE                                      all bytes are verified
    the others ─▶ SETTLING ─▶ NAMING ─▶ DONE                        the same, without the lease
    all ─▶ DONE                                                     the bytes were wrong, or the journal is closed
    DONE ─▶ CHOOSING                                                the fill goes on without its journal

`mirror.store.s3.coordinator` moves a fill from one state to the next.
"""

from collections.abc import Mapping
from enum import StrEnum


class BucketState(StrEnum):
    """How a fill is using the bucket now."""

    CHOOSING = "choosing"
    """Nothing is being read; no place that has the bytes has been found yet."""
    READING = "reading"
    """The image is in the bucket, and is read from there."""
    FOLLOWING = "following"
    """Another mirror has the lease, or had it: this fill reads that mirror's parts."""
    FETCHING = "fetching"
    """This fill has the lease, if there are leases: it asks upstream for all mirrors, and uploads what arrives."""
    SUPERSEDED = "superseded"
    """It had the lease, but another mirror has taken it over; its own upload ends as soon as it notices."""
    ALONE = "alone"
    """It asks upstream and uploads nothing: it has no journal to upload from, or the bucket has no room."""
    CUT_OFF = "cut off"
    """Like ALONE, but because the bucket fails: it checks now and then whether the bucket still does."""
    SETTLING = "settling"
    """All bytes are verified; the mirror that has the lease names the image, or this one does once nobody has the
    lease."""
    NAMING = "naming"
    """All bytes are verified, and this fill has the lease: it completes its upload."""
    DONE = "done"
    """Nothing is uploaded any more. A fill that goes on without its journal chooses once more, and only reads."""


CHOOSING, READING, FOLLOWING, FETCHING, SUPERSEDED, ALONE, CUT_OFF, SETTLING, NAMING, DONE = BucketState

UPLOADING = frozenset({FETCHING, SUPERSEDED, NAMING})
"""States in which the fill has an upload of its own."""

NOT_FROM_THE_OBJECT = frozenset({FOLLOWING, FETCHING, ALONE, CUT_OFF})
"""States in which the bytes come from somewhere other than the image's object."""

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
