"""A data collator that finds the rows of a batch in the workers of a data loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import default_data_collator

from engram_cli.runtime import loading
from engram_cli.runtime.batch_rows import RowFinder
from engram_cli.runtime.memory import Memory


class EngramCollator:
    """Adds the rows of its tokens to each batch, so that the model need not hash them.

    `collator` makes the batch, by default transformers' `default_data_collator`; its `input_ids`
    [B, T], `attention_mask` and `position_ids` decide the rows. They equal those that the memory
    would find itself. Worth it where rows lie below HBM or the CPU hashes; on a GPU the hash takes
    microseconds.
    """

    def __init__(
        self, memory: Memory, collator: Callable[[list[Any]], dict[str, Any]] | None = None
    ) -> None:
        vocabulary = len(memory.hash_tensors().lookup)
        spec = memory.spec
        hashed = loading.hash_tensors(spec.layout, spec.layers, vocab_size=vocabulary)
        self.argument = memory.rows_argument
        self.finder = RowFinder(hashed, packed=spec.packed)
        self.collator = collator or default_data_collator

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """Return a batch with `engram_rows`, int[B, L, T, C]. Raises TokenIdError."""
        batch = self.collator(features)
        batch[self.argument] = self.finder.find(
            batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")
        )
        return batch
