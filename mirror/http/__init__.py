"""What a request meets: the port, routes, conditionals and ranges, sending bytes, errors, the status page.

Never knows where bytes lie. May import `admin` and all folders below it.
"""
