"""Stage 4 of 7: token blocks in, row hits and n-gram samples out, and what they say about a layout.

Everything counted is a partial that merges: `counters` (hits of every row), `distinct` (a sample of
n-grams with their exact counts). `collisions` reads both; `folder` keeps them on disk.
"""
