"""Decode state of a static cache: tensors at fixed addresses, changed in place.

A compiled decode step reads and writes them inside its graph: nothing in Python changes from step
to step, so nothing is compiled again. Zeros mean "before the start", so an empty state needs no
branch either. Nothing beyond the needed positions is kept: static caches are not cropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.graph_capture import is_capturing_graph


class FixedState:
    """`state.DecodeState` for static caches, with the same methods.

    `tokens` int64[B, older, 2]: compressed ids and `visible`; `conv` [B, reach, D] per layer;
    `seen` int64[1], how many positions were seen.
    """

    def __init__(self, older: int, conv_receptive_fields: dict[int, int]) -> None:
        self.older, self.conv_receptive_fields = older, conv_receptive_fields
        self.seen: Tensor | None = None
        self.tokens: Tensor | None = None
        self.conv: dict[int, Tensor] = {}
        self.skipped: set[int] = set()  # layers that did not run each time
        self.ends_in_padding: bool | Tensor = False

    @property
    def length(self) -> int:
        """How many positions were seen; reads it from the device."""
        return 0 if self.seen is None else int(self.seen)

    @property
    def batch(self) -> int | None:
        """B, None before the first token."""
        return None if self.tokens is None else self.tokens.shape[0]

    def recent_tokens(self) -> Tensor | None:
        """int64[B, older, 2], None before the first token."""
        return self.tokens

    def conv_history(self, layer: int) -> Tensor | None:
        """[B, reach, D]: what the convolution of a layer read last, None before the first token.

        Raises RuntimeAttachError for a layer that was skipped.
        """
        if layer in self.skipped:
            raise was_skipped(layer, self.length)
        return self.conv.get(layer)

    def extend(self, tokens: Tensor, seen: Tensor, conv: dict[int, Tensor]) -> None:
        """Remember T more positions: [B, T] tokens and `visible`, [B, T, D] per layer."""
        if self.seen is None or self.tokens is None:
            batch = tokens.shape[0]
            self.seen = torch.zeros(1, dtype=torch.int64, device=tokens.device)
            self.tokens = tokens.new_zeros(batch, self.older, 2)
            self.conv = {
                layer: inputs.detach().new_zeros(
                    batch, self.conv_receptive_fields[layer], inputs.shape[2]
                )
                for layer, inputs in conv.items()
            }
            if tokens.is_cuda and not is_capturing_graph():
                for held in (self.seen, self.tokens, *self.conv.values()):
                    torch._dynamo.mark_static_address(held)  # CUDA graphs may change them in place
        self.seen += tokens.shape[1]
        _shift_in(self.tokens, torch.stack((tokens, seen), dim=-1))
        for layer in self.conv_receptive_fields:
            if layer in conv and layer in self.conv:
                _shift_in(self.conv[layer], conv[layer].detach())
            else:
                self.skipped.add(layer)

    def reset(self) -> None:
        """Forget everything: the next token is the first of a sequence."""
        self.skipped.clear()
        self.ends_in_padding = False
        if self.seen is not None and self.tokens is not None:
            for held in (self.seen, self.tokens, *self.conv.values()):
                held.zero_()

    def crop(self, length: int) -> None:
        """Take back to `length` positions: only to none. Raises RuntimeAttachError."""
        if length == self.length:
            return
        if length:
            raise RuntimeAttachError(
                "a static cache was cropped, and the memory keeps no older positions of it",
                "use a DynamicCache where tokens are taken back",
            )
        self.reset()

    def select(self, indices: Tensor) -> None:
        """Keep these sequences, in this order, repeats allowed."""
        self._batched(lambda held: held[torch.as_tensor(indices, device=held.device)])

    def repeat(self, repeats: int) -> None:
        """Repeat each sequence `repeats` times, side by side."""
        self._batched(lambda held: held.repeat_interleave(repeats, dim=0))

    def _batched(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.tokens is None:
            return
        self.tokens = _kept(self.tokens, change(self.tokens))
        self.conv = {layer: _kept(held, change(held)) for layer, held in self.conv.items()}


def was_skipped(layer: int, count: int) -> RuntimeAttachError:
    """The error for a layer that runs after it was skipped, as in an early exit."""
    return RuntimeAttachError(
        f"layer {layer} did not run for all of the {count} tokens in this cache, and its memory's "
        "convolution needs what it would have read of them",
        "start with an empty cache where layers are skipped for some tokens only",
    )


def _shift_in(held: Tensor, piece: Tensor) -> None:
    """The last positions of `held` [B, n, ...] followed by `piece` [B, T, ...], in place."""
    size, count = held.shape[1], piece.shape[1]
    if count >= size:
        held.copy_(piece[:, count - size :])
    else:
        held.copy_(torch.cat((held[:, count:], piece.to(held.dtype)), dim=1))


def _kept(held: Tensor, changed: Tensor) -> Tensor:
    """`changed` at the address of `held` where the batch is as large as before."""
    return held.copy_(changed) if held.shape == changed.shape else changed
