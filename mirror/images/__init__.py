"""Knows which image is current and fetches images: metadata cache, library, fill, prefetch, scrub, retention.

Nothing here decides who may read, or sees a request. May import `store`, `upstream` and all folders below them.
"""
