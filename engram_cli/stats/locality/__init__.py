"""How local look-ups are: rows in; what a hot set, a window or a cache of them catches out."""

from engram_cli.stats.locality.collector import Locality

__all__ = ["Locality"]
