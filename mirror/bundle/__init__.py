"""Images that are carried across an air gap: written to media as bundles, found on them, checked, imported.

Never trusts a medium. May import `wiring` and all folders below it.
"""
