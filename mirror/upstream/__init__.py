"""Talks to upstream: metadata, the image and its redirects, proxies, rates, loops of mirrors.

It never sends a credential anywhere but to upstream's own origin. May import `config` and all folders below it.
"""
