"""Who may read: policies, and the decisions that are remembered.

Never keeps a credential, only keyed hashes of it. May import `images` and all folders below it.
"""
