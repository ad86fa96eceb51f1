"""Rows that are looked up before the forward call, such as by the workers of a data loader.

A batch carries them as `Memory.rows_argument`, int[B, L, T, C]: the batch first, so that loaders
can divide it, then the layers in the order of `spec.layers`. `RowFinder` computes what the memory
would compute itself from the same ids, mask and positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import ops
from engram_cli.runtime.forward_args import Call, document_ages, real_positions
from engram_cli.runtime.reference import HashTensors


class RowFinder:
    """Finds the rows of whole sequences on the CPU. Can be pickled and needs no model."""

    def __init__(self, hashed: HashTensors, *, packed: bool) -> None:
        self.hashed = hashed
        self.packed = packed
        fits = max(hashed.heights) <= torch.iinfo(torch.int32).max
        self.dtype = torch.int32 if fits else torch.int64

    def find(self, ids: Tensor, mask: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """Return int[B, L, T, C] of ids int64[B, T].

        `mask` [B, T], 0 at padding; `places`: position_ids, which a packed memory reads. Raises
        TokenIdError for ids outside the vocabulary.
        """
        call = Call(0, ids=ids, mask=mask, positions=places)
        keep = real_positions(mask, 0, ids.shape[1])
        age = document_ages(call, 0, ids) if self.packed else None
        dead = None if keep is None else ~keep
        rows = ops.hash_call(self.hashed, ids, None, dead, age).rows
        assert rows is not None
        return rows.transpose(0, 1).to(self.dtype).contiguous()


def given_rows(rows: Tensor, hashed: HashTensors, ids: Tensor, past: int | Tensor) -> Tensor:
    """Return int64[L, B, T, C] of the rows that came with a call.

    Raises RuntimeAttachError where they are not of these ids or the call continues a cache.
    """
    layers, columns = hashed.columns.shape[:2]
    wanted = (len(ids), layers, ids.shape[1], columns)
    if tuple(rows.shape) != wanted:
        raise RuntimeAttachError(
            f"the batch has rows of shape {tuple(rows.shape)}, not {wanted}",
            "make the collator from the memory that is attached",
        )
    if not isinstance(past, int) or past:
        raise RuntimeAttachError(
            "the batch has rows, and the call continues a cache",
            "leave the rows out: they are those of whole sequences",
        )
    return rows.to(ids.device, torch.int64).transpose(0, 1)
