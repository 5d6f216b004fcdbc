"""Stores images: on a disk, in a bucket, in a window in memory, or on a disk in front of a bucket.

`base` defines what a store is. Nothing here asks upstream for anything. May import `config` and all folders below it.
"""
