"""Hashes token ids to table rows, by one exact arithmetic for every published scheme.

`layout` says what is hashed, `lookback` how far back each position may see, `reference` defines
the rows in NumPy, `kernels` computes the same integers fast.
"""
