"""Measures the loss of a model over held-out documents, with its memories and without.

`windows` cuts documents to the model's context, `variants` switches memories and adapters,
`scoring` runs the model, `sums` adds losses up, `intervals` compares them over documents, `gates`
measures the memory's gates, `by_document` keeps the losses of each document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import nn

from engram_cli.runtime.evaluation.by_document import DocumentLosses
from engram_cli.runtime.evaluation.in_step import InStep
from engram_cli.runtime.evaluation.scoring import device_of, score
from engram_cli.runtime.evaluation.sums import LossSums, PartLoss
from engram_cli.runtime.evaluation.variants import check_variants, variants_of
from engram_cli.runtime.evaluation.windows import Piece, cut_windows

__all__ = ["document_losses", "evaluate_losses"]


def evaluate_losses(
    model: nn.Module,
    documents: Iterable[ArrayLike],
    *,
    context: int,
    stride: int | None = None,
    variants: Sequence[str] | None = None,
    batch_tokens: int = 4096,
    shared: bool = False,
) -> PartLoss:
    """Return the losses of `model` over `documents`, by variant, in one pass over them.

    `documents`: token ids, int[T] each. One longer than `context` tokens is cut into windows that
    begin `stride` tokens apart (half a context), and every token but the first is scored once.
    `variants`: some of "bare", "memory", "lora" and "lora_memory", all that the model has by
    default. `shared`: every process of the default group calls this with the same documents,
    scores a part of them, and gets the result of all. The result gives the `loss` of a variant in
    nats per token, and the `interval` of the difference of two over documents. Raises InputError
    for a variant that the model does not have, TokenIdError.
    """
    given = context, stride, variants, batch_tokens, shared
    sums = _summed(model, documents, *given, keeps=False)
    if shared:
        sums.reduce(device_of(model))
    return sums.whole


def document_losses(
    model: nn.Module,
    documents: Iterable[ArrayLike],
    *,
    context: int,
    stride: int | None = None,
    variants: Sequence[str] | None = None,
    batch_tokens: int = 4096,
    shared: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> DocumentLosses:
    """Return the losses of `model` over each of `documents`; takes and raises as evaluate_losses.

    What it keeps grows with the number of documents. `advance` is called with the scored tokens of
    each batch of this process.
    """
    given = context, stride, variants, batch_tokens, shared
    sums = _summed(model, documents, *given, keeps=True, advance=advance)
    return DocumentLosses.of(sums, shared=shared)


def _summed(
    model: nn.Module,
    documents: Iterable[ArrayLike],
    context: int,
    stride: int | None,
    variants: Sequence[str] | None,
    batch_tokens: int,
    shared: bool,
    *,
    keeps: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> LossSums:
    """Return the sums of the documents that this process scores."""
    wanted = variants_of(model) if variants is None else tuple(variants)
    check_variants(model, wanted)
    rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    pieces = (
        Piece(document=number, ids=np.asarray(ids).reshape(-1))
        for number, ids in enumerate(documents)
        if number % world == rank
    )
    windows = cut_windows(pieces, context, max(context // 2, 1) if stride is None else stride)
    sums = LossSums(wanted, keeps=keeps)
    in_step = InStep(model, wanted, shared=shared)
    for item in score(
        model,
        windows,
        wanted,
        batch_tokens=batch_tokens,
        advance=advance,
        before=in_step.begin,
    ):
        sums.add(item)
    in_step.finish()
    return sums
