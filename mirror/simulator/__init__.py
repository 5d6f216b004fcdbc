"""A DataRobot installation to test and demo against: redirects, pre-signed URLs, faults on demand.

A real server in a process of its own (`python -m mirror.simulator`), with an API origin and an object-store origin on
two ports. `client.py` starts and steers it; `faults.py` is the page that says what it can do wrong. It knows nothing of
the mirror in front of it, so that no misunderstanding of ours can sit on both sides and cancel out.
"""
