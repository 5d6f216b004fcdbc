"""Being a process: signals, systemd, standard streams, descriptors, reloading, worker processes.

Never knows what the process serves. May import `images` and all folders below it.
"""
