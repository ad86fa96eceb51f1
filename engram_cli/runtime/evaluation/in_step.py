"""Keeps processes in step that score different texts with rows that are distributed over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from engram_cli.runtime.evaluation.scoring import device_of, token_losses
from engram_cli.runtime.evaluation.variants import as_variant
from engram_cli.runtime.sharding.trained.rows import ShardedRows


class InStep:
    """Has every process call the model as often as the one with the most batches.

    Rows over processes are looked up by all of them together. For any other model it does nothing.
    """

    def __init__(self, model: nn.Module, variants: Sequence[str], *, shared: bool) -> None:
        self.model, self.variants = model, variants
        self.is_needed = shared and any(isinstance(own, ShardedRows) for own in model.modules())

    def begin(self) -> None:
        """Say that a batch follows."""
        if self.is_needed:
            self._say(working=True)

    def finish(self) -> None:
        """Take part in the batches that other processes still have."""
        while self.is_needed and int(self._say(working=False)):
            ids = torch.zeros(1, 2, dtype=torch.int64, device=device_of(self.model))
            for name in self.variants:
                with as_variant(self.model, name):
                    token_losses(self.model, ids)

    def _say(self, *, working: bool) -> torch.Tensor:
        """Return how many processes work."""
        count = torch.tensor(int(working), device=device_of(self.model))
        dist.all_reduce(count)
        return count
