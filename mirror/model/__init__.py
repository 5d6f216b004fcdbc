"""The values that travel between folders: metadata, caller, source, cache status, status, errors.

They do nothing themselves, and import no other folder.
"""
