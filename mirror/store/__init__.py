"""Where images live: the protocol (`base`) and its implementations."""
