"""Talking to upstream: what is asked, which hops are followed, what travels with them."""
