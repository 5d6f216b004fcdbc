"""Builds a mirror from a configuration: the only folder that constructs objects for others.

Nothing here decides anything at run time. May import `access`, `process`, `images` and all folders below them.
"""
