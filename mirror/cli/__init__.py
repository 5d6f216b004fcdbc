"""The commands: parse what was typed, call, print; each command is a module, and `main` knows them all.

Never the place where something is decided that `serve` needs too. May import every other folder.
"""
