"""Decides who may read: policies, and the decisions that are remembered.

A credential is never kept, only its keyed hash. May import `images` and all folders below it.
"""
