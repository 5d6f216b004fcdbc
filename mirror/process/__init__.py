"""Provides what any process needs: signals, systemd, standard streams, descriptors, reloading, workers.

Nothing here knows what the process serves. May import `images` and all folders below it.
"""
