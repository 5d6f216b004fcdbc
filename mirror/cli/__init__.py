"""The commands of `pps-mirror`: each is a module that parses nothing and decides little; `main` calls them.

Whatever `serve` needs as well is decided elsewhere. May import every other folder.
"""
