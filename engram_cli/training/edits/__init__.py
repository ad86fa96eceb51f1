"""Edits of rows that teach a model facts: which rows to change, how far, and what else they move.

`influence` measures which rows move a fact, `choice` takes those that other text reads little for
it, `learning` finds their values, `rows` gives these to a live memory, `divergence` measures what
they do to other text.
"""
