"""Triton kernels and their launchers; `ops` loads them when a device has use for them."""

from engram_cli.runtime.kernels.cache import place_cache

place_cache()
