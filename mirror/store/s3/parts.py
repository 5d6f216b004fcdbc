"""How an image that is being uploaded is divided into parts: their size and their names.

The names are `parts/<hash>/<fill id>/<number>`, with numbers from 0; all parts but the last have the same size. S3
allows at most 10,000 parts in an object, each of 5 MiB (except the last) to 5 GiB, and 5 TiB in all.
"""

from collections.abc import Iterator

PART = 16 << 20
"""Bytes of a part, unless the image is so large that it would have too many parts."""

MOST = 10_000
"""The most parts that an object may have."""

_STEP = 1 << 20


def part_size(size: int) -> int:
    """Return the bytes of each part of an image of `size` bytes: a multiple of 1 MiB."""
    return max(PART, -(-size // (MOST * _STEP)) * _STEP)


def count(size: int, part: int) -> int:
    """Return how many parts of `part` bytes an image of `size` bytes has."""
    return -(-size // part)


def name(image_hash: str, fill: str, number: int) -> str:
    """Return the name of part `number` that the fill `fill` wrote."""
    return f"parts/{image_hash}/{fill}/{number:05d}"


def spans(start: int, stop: int, part: int) -> Iterator[tuple[int, int, int]]:
    """Divide the bytes [start, stop) of an image by part: the part's number, and the bytes [first, last) in it."""
    while start < stop:
        number, first = divmod(start, part)
        last = min(part, first + stop - start)
        yield number, first, last
        start += last - first
