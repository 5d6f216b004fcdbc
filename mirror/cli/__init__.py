"""The commands of `pps-mirror`: each is a module that parses nothing and decides little; `main` calls them.

Never the place where something is decided that `serve` needs too. May import every other folder.
"""
