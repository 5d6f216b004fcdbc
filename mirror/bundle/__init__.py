"""Carries images across an air gap: writes them to media as bundles, and finds, checks and imports them.

A medium is never trusted. May import `wiring` and all folders below it.
"""
