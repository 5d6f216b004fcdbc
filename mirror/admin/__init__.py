"""Shows operators the state of a mirror and acts for them: the overview, metrics of all workers, events, actions.

Nothing here speaks HTTP. May import `wiring` and all folders below it.
"""
