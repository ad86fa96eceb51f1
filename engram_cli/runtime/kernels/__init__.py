"""Triton kernels and their launchers; `ops` loads them when a device has use for them."""
