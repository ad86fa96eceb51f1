"""How the number of different n-grams grows with the corpus: segments in, Heaps' curve out."""

from engram_cli.stats.growth.collector import Growth

__all__ = ["Growth"]
