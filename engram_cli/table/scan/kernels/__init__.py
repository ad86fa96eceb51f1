"""Numba kernels of the scan: stored rows in; norms, hashes and signs out, then folded to figures.

`norms` has a kernel for each way to store a row, `rows` does the rest for all of them alike.
"""
