"""Makes notifications of what stores do, and lets one mirror of a fleet speak for all."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mirror.model.notification import Kind, Notification, Notify
from mirror.wiring.stores import Evicted

if TYPE_CHECKING:
    from mirror.store.s3.store import S3Store

CLAIM = "told/image.current"
"""The object that says which image a mirror of the fleet was the first to find current."""

log = logging.getLogger(__name__)


def telling_of_evictions(notify: Notify, count: Callable[[], None] = lambda: None) -> Evicted:
    """Return what tells hooks of each image that had to make room, after counting it."""

    def evicted(place: str, image_hash: str) -> None:
        count()
        said = (
            f"{image_hash} had to make room and is not {'on the disk' if place == 'disk' else 'in the bucket'} any more"
        )
        notify(Notification(Kind.IMAGE_EVICTED, said, image_hash, details={"place": place}))

    return evicted


def once_in_a_fleet(bucket: "S3Store | None", notify: Notify, there_are_hooks: Callable[[], bool]) -> Notify:
    """Return what tells only at one mirror of a fleet that another image is current: the first that finds it out.

    All else is passed on, and so is this where the bucket cannot be asked: rather twice than never. The bucket is left
    alone while there are no hooks.
    """
    if bucket is None:
        return notify
    from mirror.store.s3.claim import claim  # with AWS's libraries, see `mirror.wiring.stores.open_stores`
    from mirror.store.s3.errors import BucketFailed

    async def tell(notification: Notification) -> None:
        try:
            first = await claim(bucket.bucket, CLAIM, notification.image or "")
        except BucketFailed as error:
            log.debug("whether another mirror tells of it is not known: %s", error)
            first = True
        if first:
            notify(replace(notification, details={**notification.details, "bucket": bucket.bucket.name}))

    def told(notification: Notification) -> None:
        if notification.kind is Kind.IMAGE_CURRENT and there_are_hooks():
            bucket.background.start(tell(notification), f"tell of {notification.image}")
        else:
            notify(notification)

    return told
