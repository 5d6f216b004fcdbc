"""The values that travel between folders: metadata, caller, source, status, errors.

Never does anything with them, and imports no other folder.
"""
