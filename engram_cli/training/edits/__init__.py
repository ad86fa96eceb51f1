"""Edits of rows that teach a model facts: which rows to change, how far, and what else reads them.

`choice` takes the rows with the least traffic, `rows` puts other values into a live memory,
`learning` finds the values, `divergence` measures what they do to other text.
"""
