"""Helpers for every folder that know nothing of images: the log, metrics, units, files, clocks, limits.

They import nothing but `model`.
"""
