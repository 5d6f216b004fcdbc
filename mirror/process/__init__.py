"""What a process needs, whatever it serves: signals, systemd, standard streams, descriptors, reloading, workers.

Never knows what the process serves. May import `images` and all folders below it.
"""
