"""What operators see of a mirror and may have it do: the overview, metrics of all workers, events, actions.

Never speaks HTTP. May import `wiring` and all folders below it.
"""
