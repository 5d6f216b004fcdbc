"""`pps-mirror check`: try out whether a mirror with this configuration would work here and now.

It changes nothing, and makes no image come. May import what commands may.
"""
