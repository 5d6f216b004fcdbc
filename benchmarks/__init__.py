"""Measures the mirror beside nginx, Varnish and plain curl: `python -m benchmarks` prints the table.

Every contestant is a real process on loopback in front of the same upstream, and takes its turn in
every round, so that what the machine does meanwhile falls on all of them. Nothing here is imported
by the mirror, and only `servers.Mirror` knows how the mirror is started.
"""
