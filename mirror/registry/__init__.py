"""Reads the docker image in a stored archive: what it has, and the bytes of each blob, without a second copy.

An archive is never trusted: whatever it holds, it costs bounded time, memory and disk. Nothing here speaks HTTP or
decides who may read. May import `store`, `config` and all folders below them.
"""
