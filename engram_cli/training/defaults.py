"""The figures that `engram train` takes where none is given; no other file has any.

Rates come from sweeps on SmolLM2-135M with 300 steps of 16,384 tokens (docs/reference/training.md).
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS_LR, DENSE_LR, LORA_LR, FULL_LR = 1e-1, 3e-3, 1.5e-3, 3e-4
SCHEDULE, WARM_UP = "cosine", 0.05  # to zero, after this share of the steps
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.0
CLIP = 1.0

# One pass over the text, within these limits.
LEAST_STEPS, MOST_STEPS = 100, 1_000
EVALUATIONS = 5  # during training; and as many without a better one end it
PATIENCE = 3

# A table for a model: heads and n-grams as in the paper, rows for what the text holds.
ORDERS, HEADS, DIM = (2, 3), 8, 32
ROW_SHARE = 1.5  # parameters of all rows, of those of the model
TOKENS_A_ROW = 50  # tokens of text for one row of a head, while the share allows
LEAST_ROWS, MOST_ROWS = 2**12, 2**22
ROW_DTYPE = "float32"  # trained rows; frozen ones are bfloat16

LORA_ALPHA = 2.0  # times the rank


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """`sequences` of `length` tokens a step; `sample` and `final` held-out tokens are measured."""

    sequences: int
    length: int
    sample: int
    final: int


ON_GPU = BatchSize(sequences=32, length=512, sample=2**18, final=2**20)
ON_CPU = BatchSize(sequences=4, length=128, sample=2**11, final=2**13)

# Edits: rows changed for a token of a target, and their steps.
EDIT_ROWS, EDIT_STEPS, EDIT_RATE = 32, 100, 1.0
