"""The processes that serve: start in order, keep workers, take up another configuration, stop in order.

Never handles a request. May import `http` and all folders below it.
"""
