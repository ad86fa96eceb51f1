"""Stage 2 of 7: token ids in, table rows out, by one exact arithmetic for every published scheme.

`layout` says what is hashed, `lookback` how far back each position may see, `reference` defines
the rows in NumPy, `kernels` computes the same integers fast.
"""
