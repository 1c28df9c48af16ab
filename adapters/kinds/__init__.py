"""The kinds of adapter: a configuration and tensors, to ops. Knows no files.

A folder a family: its configurations in ``config`` (no torch), a compiler a kind beside it. A new kind is a compiler
and its keys there, and one line in ``registry``.
"""
