"""A plain decoder to attach memories to: grouped-query attention, SwiGLU, random bfloat16 weights.

As a serving engine would run it, less paging: fused projections, flash attention by SDPA, keys and
values at fixed addresses, so that a decode step can be captured as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A decoder's sizes, by default 4 B parameters; heads have 128 values."""

    vocabulary: int
    layers: int = 36
    width: int = 2560
    inner: int = 9728
    heads: int = 32
    key_heads: int = 8
    head: int = 128


class Keys:
    """Keys and values of `layers` layers at fixed addresses: a static cache.

    `attended`: how many positions a decode step reads, whatever was really filled; the rest holds
    random numbers. The decode step writes the last of them.
    """

    is_compileable = True

    def __init__(self, size: Size, batch: int, attended: int, like: Tensor) -> None:
        shape = (size.layers, 2, batch, size.key_heads, attended, size.head)
        generator = torch.Generator(device=like.device).manual_seed(3)
        self.held = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.held.normal_(generator=generator)
        self.length = torch.zeros((), dtype=torch.int64, device=like.device)

    def get_seq_length(self) -> Tensor:
        """How many positions were seen."""
        return self.length

    def reset(self) -> None:
        """Forget them."""
        self.length.zero_()


class Layer(nn.Module):
    """Attention and feed-forward, pre-norm."""

    def __init__(self, size: Size, place: int) -> None:
        super().__init__()
        self.size, self.place = size, place
        together = (size.heads + 2 * size.key_heads) * size.head
        self.norms = nn.Parameter(torch.ones(2, size.width))
        self.qkv = nn.Linear(size.width, together, bias=False)
        self.out = nn.Linear(size.heads * size.head, size.width, bias=False)
        self.up = nn.Linear(size.width, 2 * size.inner, bias=False)
        self.down = nn.Linear(size.inner, size.width, bias=False)

    def forward(
        self, hidden: Tensor, turns: tuple[Tensor, Tensor], past_key_values: Keys | None = None
    ) -> Tensor:
        """[B, T, width] of the same."""
        hidden = hidden + self.attend(self._norm(hidden, 0), turns, past_key_values)
        gate, up = self.up(self._norm(hidden, 1)).chunk(2, dim=-1)
        found: Tensor = hidden + self.down(F.silu(gate) * up)
        return found

    def attend(self, hidden: Tensor, turns: tuple[Tensor, Tensor], keys: Keys | None) -> Tensor:
        """Causal attention over the call's own positions; a step's over `keys`."""
        size, (batch, count) = self.size, hidden.shape[:2]
        mixed = self.qkv(hidden).unflatten(-1, (-1, size.head))
        turned = _turn(mixed[:, :, : size.heads + size.key_heads], turns).transpose(1, 2)
        query, key = turned.split((size.heads, size.key_heads), dim=1)
        value = mixed[:, :, size.heads + size.key_heads :].transpose(1, 2)
        is_step = keys is not None and count == 1
        if keys is not None:
            held = keys.held[self.place]
            kept = slice(-1, None) if is_step else slice(0, count)
            held[0, :, :, kept] = key
            held[1, :, :, kept] = value
            if is_step:
                key, value = held.unbind(0)
        found = F.scaled_dot_product_attention(
            query, key, value, is_causal=not is_step, enable_gqa=True
        )
        out: Tensor = self.out(found.transpose(1, 2).reshape(batch, count, -1))
        return out

    def _norm(self, hidden: Tensor, which: int) -> Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], self.norms[which], EPS)


class Decoder(nn.Module):
    """Token ids to the last position's logits."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList([Layer(size, place) for place in range(size.layers)])
        self.norm = nn.Parameter(torch.ones(size.width))
        steps = torch.arange(0, size.head, 2, dtype=torch.float32) / size.head
        self.register_buffer("angles", 1e6**-steps, persistent=False)

    def forward(self, input_ids: Tensor, past_key_values: Keys | None = None) -> Tensor:
        """[B, vocabulary] of token ids [B, T]."""
        count = input_ids.shape[1]
        position = torch.arange(count, device=input_ids.device)
        if past_key_values is not None:
            position = position + past_key_values.length
        turns = position[:, None].float() * self.angles
        wave = turns.cos()[:, None].bfloat16(), turns.sin()[:, None].bfloat16()
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, wave, past_key_values)
        if past_key_values is not None:
            past_key_values.length += count
        last = F.rms_norm(hidden[:, -1], hidden.shape[-1:], self.norm, EPS)
        return F.linear(last, self.embedding.weight)


def make_decoder(size: Size, device: torch.device) -> Decoder:
    """A decoder with random weights on `device`, in bfloat16, not to be trained."""
    with torch.device("meta"):
        made = Decoder(size).bfloat16()
    made = made.to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(0)
    for name, parameter in made.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    steps = torch.arange(0, size.head, 2, dtype=torch.float32, device=device) / size.head
    made.angles = 1e6**-steps
    return made.eval().requires_grad_(False)


def _turn(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions of [B, T, heads, head]."""
    cosine, sine = turns
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
