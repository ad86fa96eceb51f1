"""token-mean: a row is the mean of the input embeddings of the tokens of its n-grams."""

from __future__ import annotations

from functools import partial

from engram_cli.table.inits.corpus.filled import CorpusFill

TokenMean = partial(CorpusFill, name="token-mean")
"""Over every occurrence of an n-gram that falls on the row, the mean of the tokens it sees."""
