"""engram-peft's memory on a model, where the package can be imported."""

from __future__ import annotations

import importlib
import importlib.util
import typing
from typing import Any

import typing_extensions
from torch import nn

PRESENT = importlib.util.find_spec("engram_peft") is not None
if PRESENT and not hasattr(typing, "override"):  # Python 3.11 has none, and its modules use it
    typing.override = typing_extensions.override  # type: ignore[attr-defined]


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
