"""Offers stored images as a container registry does: what each archive has, and the bytes of each blob in it.

An archive is never trusted: whatever it holds, it costs bounded time, memory and disk. Nothing here speaks HTTP or
decides who may read. May import `images` and all folders below it.
"""
