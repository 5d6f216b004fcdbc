"""`pps-mirror doctor`: finds out why something does not work, with a module for each subject, and says what to do.

It changes nothing. May import what commands may.
"""
