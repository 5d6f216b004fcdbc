"""A bucket of any S3-compatible server as a store, and what mirrors that share one do for each other.

Never lets a lease or a conditional write decide whether bytes are right. May import what `store` may.
"""
