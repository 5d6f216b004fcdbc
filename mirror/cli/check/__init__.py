"""`pps-mirror check`: tries out whether a mirror with this configuration would work here and now.

It changes nothing, and never makes upstream send an image. May import what commands may.
"""
