"""Pushes a stored image into another registry, such as the site's own Harbor.

It reads blobs from the archive as our own registry does, so digests are the same there. It knows no routes of ours. May
import `registry` and the folders below that.
"""
