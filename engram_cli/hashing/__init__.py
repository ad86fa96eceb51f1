"""Hashes token ids to table rows, by one exact arithmetic for every published scheme.

`layout` says what is hashed, `lookback` how far back each position may see, `reference` defines
the rows in NumPy, `kernels` computes the same integers fast.
"""

TILE = 2048  # positions that a kernel hashes together
# The reciprocal path is exact for mixes in [0, 2**63) and moduli between these, both excluded.
FAST_MODULUS_ABOVE = 8192
FAST_MODULUS_BELOW = 2**31
