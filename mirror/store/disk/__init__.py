"""A directory as a store: images, partials, quarantine, room, and what is made durable when.

Never trusts a file that is not the one that was verified. May import what `store` may.
"""
