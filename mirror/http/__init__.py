"""Handles HTTP: the port, routes, conditionals and ranges, sending bytes, errors, the status page.

Nothing here knows where bytes are stored. May import `admin` and all folders below it.
"""
