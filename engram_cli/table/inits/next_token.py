"""next-token: a row is the mean output embedding of the tokens that followed its n-grams."""

from __future__ import annotations

from functools import partial

from engram_cli.table.inits.corpus.filled import CorpusFill

NextToken = partial(CorpusFill, name="next-token")
"""Over every occurrence of an n-gram that falls on the row, less the mean over the corpus."""
