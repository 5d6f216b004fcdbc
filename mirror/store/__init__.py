"""Where images lie: `base` says what a store is; a disk, a bucket, a window in memory, a disk before a bucket.

Never asks upstream for anything. May import `config` and all folders below it.
"""
