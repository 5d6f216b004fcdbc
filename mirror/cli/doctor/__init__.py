"""`pps-mirror doctor`: finds out why something does not work, with a module for each subject, and says what to do.

Never changes anything. May import what commands may.
"""
