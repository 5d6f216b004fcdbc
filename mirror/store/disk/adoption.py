"""Turns a stored file that is not the one that was verified back into a partial, which is then hashed again."""

import logging
from pathlib import Path

from mirror.common.log import event
from mirror.model.metadata import ImageMetadata
from mirror.store.disk.layout import Layout
from mirror.store.disk.quarantine import set_aside

log = logging.getLogger(__name__)


def adopt(layout: Layout, metadata: ImageMetadata, length: int) -> bool:
    """Turn a stored file that cannot be trusted into the image's partial, which has `length` bytes. Blocks.

    Returns False when there is no such file, or it is useless. The caller holds the partial's lock.
    """
    image = layout.images / metadata.hash / "image"
    if (file := layout.file(metadata.hash)) is None:
        return False
    try:
        return _adopt_file(layout, image, file.st_size, metadata, length)
    except FileNotFoundError:  # another process has just removed it
        return False


def _adopt_file(layout: Layout, image: Path, size: int, metadata: ImageMetadata, length: int) -> bool:
    if length < size <= metadata.size:
        log.warning(
            "%s is not the file that was verified: it is verified again",
            image,
            extra=event("image.altered", image=metadata.hash),
        )
        image.rename(layout.partial / metadata.hash)
        return True
    log.warning(
        "%s has %d bytes and should have %d: it is set aside",
        image,
        size,
        metadata.size,
        extra=event("image.set_aside", image=metadata.hash),
    )
    set_aside(image, layout.quarantine, metadata.hash)
    return False
