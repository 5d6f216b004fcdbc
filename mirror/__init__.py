"""pps-mirror: a caching mirror for DataRobot's Portable Prediction Server image."""

__version__ = "0.1.0"
