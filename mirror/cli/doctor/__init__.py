"""`pps-mirror doctor`: find out why something does not work, a module for each subject, and say what to do.

It tries things out and changes nothing. May import what commands may.
"""
