"""Knows which image is current and brings images here: catalog, library, fill, prefetch, scrub, retention.

Never asks who may read, and never sees a request. May import `store`, `upstream` and all folders below them.
"""
