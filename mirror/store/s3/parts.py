"""The parts of an image that is on its way into the bucket: how large, under which names.

`parts/<hash>/<fill id>/<number>`, numbers from 0, all of one size but for the last. S3 takes at most 10,000 parts for
an object, each from 5 MiB to 5 GiB but for the last, and 5 TiB in all.
"""

from collections.abc import Iterator

PART = 16 << 20
"""Bytes of a part, unless the image is so large that it would have too many."""

MOST = 10_000
"""Parts of an object, at most."""

_STEP = 1 << 20


def part_size(size: int) -> int:
    """Bytes of each part of an image of `size` bytes: a multiple of 1 MiB."""
    return max(PART, -(-size // (MOST * _STEP)) * _STEP)


def count(size: int, part: int) -> int:
    """How many parts of `part` bytes an image of `size` bytes has."""
    return -(-size // part)


def name(image_hash: str, fill: str, number: int) -> str:
    """The name of part `number` that the fill `fill` wrote."""
    return f"parts/{image_hash}/{fill}/{number:05d}"


def spans(start: int, stop: int, part: int) -> Iterator[tuple[int, int, int]]:
    """Divide the bytes [start, stop) of an image: number of the part, and the bytes [first, last) within it."""
    while start < stop:
        number, first = divmod(start, part)
        last = min(part, first + stop - start)
        yield number, first, last
        start += last - first
