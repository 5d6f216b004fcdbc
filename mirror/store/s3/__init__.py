"""Keeps images in a bucket of any S3-compatible server, and lets mirrors that share a bucket help one another.

Leases and conditional writes never decide whether bytes are right. May import what `store` may.
"""
