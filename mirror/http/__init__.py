"""What a request meets: routes, conditionals and ranges, sending, errors."""
