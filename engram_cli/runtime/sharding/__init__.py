"""Rows of a layer distributed over the GPUs of one host."""
