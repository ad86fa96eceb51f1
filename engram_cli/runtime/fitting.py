"""Fits the gates of a new memory to a text in a few steps, so that its rows help at once.

Only the dense weights of the memory's last layer learn (`layer_fit`).
The same text and seed give the same weights on the same machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.runtime.carried import memory_of
from engram_cli.runtime.layer_fit import LayerFit, Window
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import dense_state

STEPS = 48
BATCH_TOKENS = 1024
CONTEXT = 512
HELD_WINDOWS = 8  # that the loss is measured on; one window in as many is kept for it
MOST_TOKENS = 2**24  # that are read of a text; windows are drawn from them

_Ranked = tuple[float, int, Window]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What `fit` did: losses in nats per token on windows that it did not learn from.

    `layer` is the layer of the table, `decoder_layer` its place. `kept` is False where the loss did
    not fall: then the weights are as they were.
    """

    layer: int
    decoder_layer: int
    before: float
    after: float
    steps: int
    tokens: int
    kept: bool

    def __str__(self) -> str:
        change = f"{self.before:.3f} -> {self.after:.3f} nats per token"
        return (
            f"fitted decoder layer {self.decoder_layer}: {change}, after {self.tokens:,} tokens"
            + ("" if self.kept else "; the loss did not fall, so it starts silent")
        )


def fit(
    model: nn.Module,
    documents: Iterable[ArrayLike],
    *,
    name: str | None = None,
    steps: int = STEPS,
    batch_tokens: int = BATCH_TOKENS,
    context: int = CONTEXT,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> FitResult:
    """Fit the dense weights of the last layer of a memory of `model` to a text.

    `documents`: token ids, int[T] each, of which windows of `context` tokens are drawn; one
    window in eight is not learnt from, but measured on. A text that the rows were not filled from
    is best: in one that they were, they know every next token. `steps` steps of `batch_tokens`
    tokens; `advance` is called with the tokens of each. Memory does not grow with the text. The
    backbone's weights, gradients and modes stay as they are. Raises InputError for a text that is
    too short, TokenIdError, RuntimeAttachError.
    """
    memory = memory_of(model, name)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise RuntimeAttachError("the model is offloaded", "load it whole to fit a memory")
    per_step = per_step_tokens(context, batch_tokens) // context
    train, held = _draw(documents, context, steps * per_step, seed)
    layer = max(memory.spec.layers, key=memory.spec.index)
    with _frozen(model, memory):
        fitting = LayerFit(model, memory, layer, steps)
        start = {key: value.clone() for key, value in dense_state(fitting.module).items()}
        try:
            before = fitting.measure(held)
            fitting.start(train)
            for step in range(steps):
                picks = [(step * per_step + i) % len(train) for i in range(per_step)]
                fitting.step(np.stack([train[pick] for pick in picks]))
                advance(per_step * context)
            after = fitting.measure(held)
            kept = after < before
        except BaseException:
            fitting.module.load_state_dict(start, strict=False)
            raise
        if not kept:
            fitting.module.load_state_dict(start, strict=False)
    return FitResult(
        layer=layer,
        decoder_layer=memory.spec.index(layer),
        before=before,
        after=after if kept else before,
        steps=steps,
        tokens=steps * per_step * context,
        kept=kept,
    )


def per_step_tokens(context: int, batch_tokens: int = BATCH_TOKENS) -> int:
    """Return the tokens of one step: whole windows, one at least."""
    return max(batch_tokens // context, 1) * context


def _draw(
    documents: Iterable[ArrayLike], context: int, count: int, seed: int
) -> tuple[list[Window], NDArray[np.int64]]:
    """Return windows to learn from, int64[context], and windows to measure on, int64[B, context].

    Documents take turns: none gives its second window before each gave one, in a random order. One
    window in eight is for measuring. Documents are joined where they are shorter than a window.
    """
    generator = np.random.default_rng(seed)
    wanted = (count, HELD_WINDOWS)
    kept: tuple[list[_Ranked], list[_Ranked]] = ([], [])  # heaps, the last in turn first
    rest: Window = np.empty(0, dtype=np.int64)
    number = read = 0
    for document in documents:
        ids = np.concatenate((rest, np.asarray(document, dtype=np.int64).reshape(-1)))
        whole = len(ids) // context * context
        windows = ids[:whole].reshape(-1, context)
        for turn, place in enumerate(generator.permutation(len(windows))):
            part = int(number % HELD_WINDOWS == HELD_WINDOWS - 1)
            ranked = (-turn - float(generator.random()), number, windows[place].copy())
            push = heapq.heappush if len(kept[part]) < wanted[part] else heapq.heappushpop
            push(kept[part], ranked)
            number += 1
        rest = ids[whole:]
        read += whole
        if read >= MOST_TOKENS:
            break
    if not kept[0] or not kept[1]:
        raise InputError(
            f"the text has {number} windows of {context} tokens, and {HELD_WINDOWS} are needed",
            f"give a text of {HELD_WINDOWS * context:,} tokens or more",
        )
    train, held = ([window for _, _, window in sorted(heap, reverse=True)] for heap in kept)
    return train, np.stack(held)


@contextmanager
def _frozen(model: nn.Module, memory: Memory) -> Iterator[None]:
    """Switch learning off and the memory on; afterwards modes and gradients are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    learns = [(each, each.requires_grad, each.grad) for each in model.parameters()]
    active = memory.active
    try:
        model.eval()
        model.requires_grad_(False)
        memory.active = True
        yield
    finally:
        memory.active = active
        for parameter, was, gradient in learns:
            parameter.requires_grad_(was)
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
