"""Rows that learn and are distributed over the processes of the default group, one part on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.modules.base import MemoryModule, Rows
from engram_cli.runtime.row_optimisers import DISTRIBUTED
from engram_cli.runtime.sharding.trained.route import vectors
from engram_cli.runtime.sparse_gradients import ShardedGradient, Watched
from engram_cli.runtime.tables import Table


class ShardedRows(Rows):
    """The rows of a layer that this process owns, [owned, dim]; a call gets any of `height` rows.

    Gradients are sparse. In no state dict: a process does not have the table, and `save_engram`
    writes it. Its optimiser's state is that of the rows it owns.
    """

    def __init__(self, weight: Tensor, height: int, *, trainable: bool = True) -> None:
        super().__init__(weight, trainable=trainable, sparse=True)
        self.num_embeddings = self.height = height
        self._checked = 0  # the id of the last wrapper that leaves the rows alone
        self._watched = Watched(ShardedGradient)

    def forward(self, rows: Tensor) -> Tensor:
        """Return [B, T, C, dim] of rows int64[B, T, C]; every process must call it."""
        found: Tensor = look_up([self], rows[None])[0]
        return found.view(*rows.shape, self.weight.shape[1])

    def table(self) -> Table:
        """Raise RuntimeAttachError: no process has the table."""
        raise RuntimeAttachError(
            "the rows are distributed over processes", "call the model, or save_engram"
        )

    def check(self) -> None:
        """Watch the gradient. Raise RuntimeAttachError where a wrapper took the rows over."""
        if type(self.weight) is not nn.Parameter:
            raise RuntimeAttachError(
                "FSDP took over rows that are distributed already",
                "fully_shard(model, ignored_params=set(row_parameters(model)))",
            )
        wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if wrapper is not None and id(wrapper) != self._checked:
            self._check_left_out(wrapper)
        setattr(self.weight, DISTRIBUTED, True)
        self._watch()

    def _check_left_out(self, wrapper: DistributedDataParallel) -> None:
        for name, own in wrapper.module.named_parameters():
            if own is self.weight and name not in wrapper.parameters_to_ignore:
                raise RuntimeAttachError(
                    "DistributedDataParallel sent the first process's rows to all, over theirs",
                    "call engram_cli.runtime.carried.leave_out_of_broadcasts(module) before you "
                    "wrap module",
                )
        self._checked = id(wrapper)

    def _save_to_state_dict(self, *args: Any) -> None:
        """Save nothing."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load nothing, and miss nothing."""

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"{len(self.weight)} of {self.height}, {self.weight.shape[1]}, sharded"


# As torch.compiler.disable, but loads TorchDynamo, and with it Triton, when it is first called.
@torch._disable_dynamo  # type: ignore[attr-defined]
def look_up(tables: Sequence[ShardedRows], rows: Tensor) -> Tensor:
    """Return [L, ..., C x dim] of rows int64[L, ..., C] of `tables`, one a layer.

    Every process must call it, and its backward pass, equally often. Raises RuntimeAttachError
    where a wrapper took the rows over.
    """
    for table in tables:
        table.check()
    weights = [table.weight for table in tables]
    rows = rows.to(weights[0].device)
    return vectors(weights, rows, [table.height for table in tables])


def sharded_rows(layers: nn.ModuleDict) -> dict[int, ShardedRows]:
    """Return the rows of a memory's layers that are distributed over processes; {} for others."""
    found = {
        int(layer): cast(MemoryModule, module).multi_head_embedding.embedding
        for layer, module in layers.items()
    }
    return {layer: rows for layer, rows in found.items() if isinstance(rows, ShardedRows)}
