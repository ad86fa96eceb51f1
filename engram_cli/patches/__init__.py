"""Patches: some rows of a table with the values that replace them.

`patch`, `patch_file` and `stack` need NumPy only, since models load patches.
"""
