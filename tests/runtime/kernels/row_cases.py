"""Gradients of rows that every implementation must agree on, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RowCase:
    """`count` vectors of `dim` values at rows below `height`; `hot` of them at one row."""

    count: int = 70
    dim: int = 12
    height: int = 40
    hot: int = 0
    dtype: torch.dtype = torch.float32
    strided: bool = False

    def make(self, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Vectors and row numbers; where `strided`, vectors lie apart."""
        generator = torch.Generator().manual_seed(seed)
        width = self.dim + 8 if self.strided else self.dim
        values = torch.randn(self.count, width, generator=generator).to(device, self.dtype)
        rows = torch.randint(0, self.height, (self.count,), generator=generator)
        rows[torch.randperm(self.count, generator=generator)[: self.hot]] = self.height // 2
        return values[:, : self.dim], rows.to(device)


CASES = {
    "few": RowCase(count=5),
    "some": RowCase(),
    "one row": RowCase(count=100, height=1),
    "a hot row": RowCase(count=300, height=500, hot=150),
    "all different": RowCase(count=33, height=100_000),
    "exactly two pieces": RowCase(count=64, height=3),
    "wide": RowCase(count=40, dim=600, height=20),
    "one value": RowCase(count=40, dim=1, height=20),
    "bfloat16": RowCase(dtype=torch.bfloat16),
    "float16": RowCase(dtype=torch.float16, hot=40),
    "apart": RowCase(strided=True),
    "none": RowCase(count=0),
}
