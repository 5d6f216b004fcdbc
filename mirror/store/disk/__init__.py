"""Keeps images in a directory: the images, the partials, the quarantine, the room they take, and when they are durable.

A file that is not the one that was verified is never trusted. May import what `store` may.
"""
