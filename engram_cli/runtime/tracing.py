"""Trace a text through a model: how far each gate of its memory opens for each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engram_cli.errors import InputError, MismatchError
from engram_cli.runtime.carried import memory_of
from engram_cli.runtime.modules.base import MemoryModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The gates of one sequence of T tokens: `gates` has float32[T, streams] in 0..1 per layer.

    Layers go by their number in the table; `decoder_layers` says where each lies, counted from 0.
    `strengths`: float32[T] per layer, the norm of what was added over that of the hidden state it
    was added to: an open gate on a value of zero says nothing.
    """

    ids: tuple[int, ...]
    gates: dict[int, Tensor]
    strengths: dict[int, Tensor]
    decoder_layers: dict[int, int]

    @property
    def untrained(self) -> tuple[int, ...]:
        """The layers that added nothing to any token: their value projection or rows are zero.

        So a fresh bundle is. Its gates are as they were drawn, and say nothing.
        """
        return tuple(layer for layer, strength in self.strengths.items() if not strength.any())


def trace(
    model: nn.Module,
    text: str | Tensor,
    *,
    tokenizer: Callable[[str], Any] | None = None,
    name: str | None = None,
) -> Trace:
    """Run `model` once over a text and return the gates of the memory it carries.

    `text`: a string, for which `tokenizer` gives token ids as transformers' or tokenizers' do, or
    int64 ids [T] or [1, T]. The model's mode and gradients stay as they are. Raises InputError for
    no tokens or no tokenizer, MismatchError for a tokenizer whose ids the memory does not know,
    RuntimeAttachError for no memory.
    """
    memory = memory_of(model, name)
    ids = torch.tensor(_ids(text, tokenizer)) if isinstance(text, str) else text.reshape(-1)
    if not len(ids):
        raise InputError("there are no tokens to trace", "give a text")
    known = memory.spec.layout.vocab_size
    if isinstance(text, str) and int(ids.max()) >= known:
        raise MismatchError(
            f"the tokenizer gives id {int(ids.max()):,}, the memory was made for {known:,} ids",
            "give the tokenizer it was made with",
        )
    gates: dict[int, Tensor] = {}
    strengths: dict[int, Tensor] = {}
    handles = [
        memory.layers[str(layer)].register_forward_hook(_listener(layer, gates, strengths))
        for layer in memory.spec.layers
    ]
    mode = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(ids[None].to(memory.hash_tensors().lookup.device))
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    return Trace(
        ids=tuple(ids.tolist()),
        gates=gates,
        strengths=strengths,
        decoder_layers={layer: memory.spec.index(layer) for layer in gates},
    )


def _listener(
    layer: int, gates: dict[int, Tensor], strengths: dict[int, Tensor]
) -> Callable[[MemoryModule, tuple[Any, ...], Any], None]:
    def listen(module: MemoryModule, args: tuple[Any, ...], output: Any) -> None:
        hidden, rows = args[:2]
        streams = hidden.reshape(*rows.shape[:2], module.carried_streams, -1)
        found = module.gates(streams.to(module.anchor.device), module.vectors(rows))
        gates[layer] = found[0, ..., 0].float().cpu()
        added, _ = module.forward(*args)  # the output is the sum; without the hooks
        added = added.reshape(*rows.shape[:2], -1).float().norm(dim=-1)
        base = hidden.reshape(*rows.shape[:2], -1).float().norm(dim=-1)
        strengths[layer] = (added / base.clamp_min(1e-12))[0].cpu()

    return listen


def _ids(text: str, tokenizer: Callable[[str], Any] | None) -> list[int]:
    encode = getattr(tokenizer, "encode", None)
    if encode is None:
        raise InputError("a text needs a tokenizer", "trace(model, text, tokenizer=tokenizer)")
    found = encode(text)
    return [int(token) for token in getattr(found, "ids", found)]
