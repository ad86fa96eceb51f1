"""engram-peft's memory on a model, where it can be imported: Python 3.12, beside trl."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from torch import nn

# Its modules use typing.override.
PRESENT = sys.version_info >= (3, 12) and importlib.util.find_spec("engram_peft") is not None


def attached(
    model: nn.Module,
    *,
    layers: tuple[int, ...],
    rows_per_head: int,
    heads: int,
    dim: int,
    hidden: int,
    vocabulary: int,
    sparse: bool,
) -> Any:
    """`model` wrapped with fresh memories of 2- and 3-grams at `layers`, counted from 0.

    One stream, no compression, its convolution and zero first values as they come.
    """
    config = importlib.import_module("engram_peft.config").EngramConfig(
        engram_vocab_size_per_ngram=[heads * rows_per_head] * 2,
        ngram_sizes=[2, 3],
        n_head_per_ngram=heads,
        embedding_dim=2 * heads * dim,
        enable_tokenizer_compression=False,
        compressed_vocab_size=vocabulary,
        target_layers=list(layers),
        hc_mult=1,
        hidden_size=hidden,
        pad_id=2,
        use_sparse_embeddings=sparse,
    )
    wrapped = importlib.import_module("engram_peft.model").EngramModel(model, config)
    wrapped.load_engram()
    return wrapped
