"""Facts learned one by one in a single batch: each line of it has a table of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from patches_model import Prepared
from torch import Tensor, nn

from engram_cli.training.edits.choice import ChosenRows
from engram_cli.training.edits.learning import FactTokens
from engram_cli.training.edits.rows import RowValues


def learn_singly(
    run: Prepared, facts: Sequence[FactTokens], chosen: Sequence[ChosenRows]
) -> tuple[list[dict[int, RowValues]], int]:
    """Return the edits of each fact alone, learned in one batch of them all."""
    heights = {n: run.memory.spec.layout.layer(n).rows for n in run.memory.spec.layers}
    keys = {
        layer: np.concatenate(
            [own.get(layer, np.zeros(0, np.int64)) + line * height
             for line, own in enumerate(chosen)]
        )
        for layer, height in heights.items()
    }  # fmt: skip
    with apart(run.memory):
        learned = run.learn(facts, {n: own for n, own in keys.items() if len(own)}, 2**20)
    edits: list[dict[int, RowValues]] = [{} for _ in facts]
    for layer, own in learned.edits.items():
        line = torch.div(own.rows, heights[layer], rounding_mode="floor")
        for number, each in enumerate(edits):
            here = line == number
            if bool(here.any()):
                each[layer] = RowValues(
                    rows=own.rows[here] - number * heights[layer], values=own.values[here]
                )
    return edits, learned.steps


class Apart(nn.Module):
    """Rows of a layer in which each line of a batch has a table of its own, as far as edits go."""

    def __init__(self, base: nn.Module, height: int) -> None:
        super().__init__()
        self.base, self.height = base, height

    def forward(self, rows: Tensor) -> Tensor:
        return self.base(rows % self.height)


@contextmanager
def apart(memory: Any) -> Iterator[None]:
    """Number the rows of each line of a batch on: line 1 has the rows from the height on."""
    kept = {}
    for layer in memory.spec.layers:
        embedding = memory.layers[str(layer)].multi_head_embedding
        height = memory.spec.layout.layer(layer).rows
        kept[layer] = embedding.embedding, embedding.forward
        embedding.embedding = Apart(embedding.embedding, height)

        def forward(rows: Tensor, embedding: Any = embedding, height: int = height) -> Tensor:
            lines = torch.arange(len(rows), device=rows.device)[:, None, None]
            single = rows.ndim == 3 and len(rows) == 1
            out = embedding.embedding(rows if single else rows + lines * height)
            return out.flatten(-2) if out.ndim > rows.ndim else out

        embedding.forward = forward
    try:
        yield
    finally:
        for layer, (rows, _) in kept.items():
            embedding = memory.layers[str(layer)].multi_head_embedding
            embedding.embedding = rows
            del embedding.forward
