"""The states of a fill with regard to the bucket that mirrors share.

CHOOSING ─▶ READING | FOLLOWING | FETCHING | ALONE | CUT_OFF    as the bucket and the lease are found
each of them but FETCHING ─▶ CHOOSING                           the stream broke, or has to come from elsewhere
READING, FOLLOWING ─▶ CUT_OFF                                   the bucket fails before it gives a byte
FETCHING ─▶ SUPERSEDED ─▶ CHOOSING                              another mirror took the lease over
FETCHING ─▶ NAMING ─▶ DONE                                      all bytes are verified
any other ─▶ SETTLING ─▶ NAMING ─▶ DONE                         the same, without the lease
any ─▶ DONE                                                     the bytes were wrong, or the journal is closed
DONE ─▶ CHOOSING                                                the fill goes on without its journal
"""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
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


UPLOADING = frozenset({State.FETCHING, State.SUPERSEDED, State.NAMING})
"""States in which the fill has an upload of its own."""

NOT_FROM_THE_OBJECT = frozenset({State.FOLLOWING, State.FETCHING, State.ALONE, State.CUT_OFF})
"""States whose bytes come from another place than the image's object."""

_CHOSEN = frozenset({State.READING, State.FOLLOWING, State.FETCHING, State.ALONE, State.CUT_OFF})

NEXT: Mapping[State, frozenset[State]] = {
    State.CHOOSING: frozenset({State.CHOOSING, *_CHOSEN, State.SETTLING, State.DONE}),
    State.READING: frozenset({State.CHOOSING, State.CUT_OFF, State.SETTLING, State.DONE}),
    State.FOLLOWING: frozenset({State.CHOOSING, State.CUT_OFF, State.SETTLING, State.DONE}),
    State.FETCHING: frozenset({State.SUPERSEDED, State.NAMING, State.DONE}),
    State.SUPERSEDED: frozenset({State.CHOOSING, State.SETTLING, State.DONE}),
    State.ALONE: frozenset({State.CHOOSING, State.SETTLING, State.DONE}),
    State.CUT_OFF: frozenset({State.CHOOSING, State.SETTLING, State.DONE}),
    State.SETTLING: frozenset({State.NAMING, State.DONE}),
    State.NAMING: frozenset({State.DONE}),
    State.DONE: frozenset({State.CHOOSING, State.DONE}),
}
"""Which state may follow which."""
