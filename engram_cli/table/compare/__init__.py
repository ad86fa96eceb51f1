"""Compares the rows of two sources of one layout."""
