"""The values that travel between folders: metadata, caller, source, cache status, status, errors.

Never does anything with them, and imports no other folder.
"""
