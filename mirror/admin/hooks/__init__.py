"""Tells others what happened: queues it on the disk, and delivers it to URLs and commands until they have taken it."""
