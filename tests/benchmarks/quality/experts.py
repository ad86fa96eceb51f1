"""Experts in place of a decoder's inner layers: what a memory's parameters could be instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BALANCING = 0.01  # how far the bias of an expert moves a step


class Experts(nn.Module):
    """`count` gated experts of `inner` units, of which each token takes the `taken` nearest.

    Affinities are sigmoids. A bias that follows the load, and has no gradient, helps to choose:
    balance without a loss of its own, as in DeepSeek-V3.
    """

    bias: Tensor
    load: Tensor

    def __init__(self, hidden: int, inner: int, count: int, taken: int) -> None:
        super().__init__()
        self.taken = taken
        self.router = nn.Parameter(torch.empty(count, hidden))
        self.up = nn.Parameter(torch.empty(count, hidden, 2 * inner))
        self.down = nn.Parameter(torch.empty(count, inner, hidden))
        for weight in (self.router, self.up, self.down):
            nn.init.normal_(weight, std=0.02)
        self.register_buffer("bias", torch.zeros(count))
        self.register_buffer("load", torch.ones(count))

    @torch.compiler.disable
    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, d] of hidden [B, T, d]."""
        flat = hidden.flatten(0, 1)
        chosen, share = self.choose(flat)
        order = chosen.flatten().argsort(stable=True)
        load = (chosen[..., None] == torch.arange(len(self.bias), device=flat.device)).sum((0, 1))
        if self.training:
            self._balance(load.float())
        ends = load.cumsum(0).to(torch.int32)
        dtype = _product_dtype(flat)
        taken = flat.index_select(0, order // self.taken).to(dtype)
        gate, value = functional.grouped_mm(taken, self.up.to(dtype), offs=ends).chunk(2, dim=-1)
        inner = functional.silu(gate) * value
        out = functional.grouped_mm(inner, self.down.to(dtype), offs=ends)
        back = out.index_select(0, order.argsort()).unflatten(0, chosen.shape)
        return (back * share[..., None].to(dtype)).sum(dim=1).to(hidden.dtype).view(hidden.shape)

    def choose(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens [N, d]: their experts int64[N, taken], and how much each counts."""
        with torch.autocast(flat.device.type, enabled=False):
            affinity = functional.linear(flat.float(), self.router).sigmoid()
        chosen = (affinity + self.bias).topk(self.taken).indices
        share = affinity.gather(1, chosen)
        return chosen, share / share.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def _balance(self, load: Tensor) -> None:
        self.bias += BALANCING * (load.mean() - load).sign()
        self.load.lerp_(load / load.mean(), 0.05)


def _product_dtype(flat: Tensor) -> torch.dtype:
    kind = flat.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else flat.dtype
