"""Builds a mirror from a configuration: the only place that constructs what others are given.

Never decides anything at run time. May import `access`, `process`, `images` and all folders below them.
"""
