"""A bucket of any S3-compatible server as a store, and what replicas that share one do for each other."""
