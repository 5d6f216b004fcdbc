"""Runs the processes that serve: starts them in order, keeps workers, applies another configuration, stops in order.

Nothing here handles a request. May import `http` and all folders below it.
"""
