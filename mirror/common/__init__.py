"""What every folder may use and what knows nothing of images: the log, metrics, units, files, clocks, limits.

Never imports anything but `model`.
"""
