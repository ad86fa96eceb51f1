"""Measures which rows move the target tokens of facts: the size of the gradient of each look-up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.runtime.memory import Memory
from engram_cli.training.edits.choice import Candidates, ChosenRows, best_rows, each_joined
from engram_cli.training.edits.learning import FactTokens, fact_batches, frozen, predicted_tokens
from engram_cli.training.edits.rows import embedding_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Influence:
    """How much each look-up of a fact moves one of its target tokens: `squares` float32[L, T, C],
    the squared norm of the gradient of the token's loss by the vector that was looked up.

    `fact`: its number; `token`: which target token. The last token of the fact is left out of T.
    """

    fact: int
    token: int
    squares: NDArray[np.float32]


def measure_influence(
    model: nn.Module, memory: Memory, facts: Sequence[FactTokens], *, batch_tokens: int
) -> Iterator[Influence]:
    """Yield the influences of each fact's look-ups on each of its target tokens.

    The model and the memory stay as they are. Raises InputError for losses that are not finite.
    """
    for batch in fact_batches(facts, batch_tokens):
        with frozen(model), _watched(memory) as watched, torch.enable_grad():
            losses, _ = predicted_tokens(model, facts, batch)
            counts = [facts[fact].tokens for fact in batch]
            parts = torch.split(losses, counts)
            reads = [each.read for each in watched]
            for token in range(max(counts)):
                lines = [line for line, count in enumerate(counts) if count > token]
                loss = torch.stack([parts[line][token] for line in lines]).sum()
                more = token + 1 < max(counts)
                found = torch.autograd.grad(loss, reads, retain_graph=more, allow_unused=True)
                squares = torch.stack(
                    [
                        torch.zeros(read.shape[:-1], device=losses.device)
                        if own is None
                        else own.float().square().sum(dim=-1).to(losses.device)
                        for own, read in zip(found, reads, strict=True)
                    ]
                ).cpu()  # fmt: skip
                for line in lines:
                    fact = batch[line]
                    own_squares = squares[:, line, : len(facts[fact].ids) - 1].numpy()
                    yield Influence(fact=fact, token=token, squares=own_squares)


def choose_rows(
    model: nn.Module,
    memory: Memory,
    facts: Sequence[FactTokens],
    candidates: Sequence[Candidates],
    per_token: int,
    *,
    floor: float,
    most_hits: float | None = None,
    batch_tokens: int,
) -> Sequence[ChosenRows]:
    """Return the rows to change of each fact: `best_rows` for each of its target tokens."""
    chosen = (
        (
            each.fact,
            best_rows(candidates[each.fact], each.squares, per_token, floor, most_hits),
        )
        for each in measure_influence(model, memory, facts, batch_tokens=batch_tokens)
    )
    return each_joined(len(facts), chosen)


class _Watched(nn.Module):
    """The rows of a layer; keeps the vectors [B, T, C, dim] of the last look-up, as leaves."""

    read: Tensor

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.base(rows)
        self.read = found.reshape(*rows.shape, -1).detach().requires_grad_()
        return self.read


@contextmanager
def _watched(memory: Memory) -> Iterator[list[_Watched]]:
    """Watch the look-ups of all layers while the block runs."""
    kept: list[tuple[Any, Any]] = []
    try:
        for layer in memory.spec.layers:
            embedding = embedding_of(memory, layer)
            kept.append((embedding, embedding.embedding))
            embedding.embedding = _Watched(embedding.embedding)
        yield [cast(_Watched, embedding.embedding) for embedding, _ in kept]
    finally:
        for embedding, base in kept:
            embedding.embedding = base
