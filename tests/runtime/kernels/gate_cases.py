"""Inputs for the gate and its twin, on any device, and how near the two must be."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engram_cli.runtime.gate_reference import GateWeights, Past

# torch uses its own deprecated torch.jit.script when forward mode is first used.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@dataclass(frozen=True, kw_only=True)
class GateCase:
    """Shapes and options of one call."""

    batch: int = 2
    count: int = 9
    streams: int = 2
    width: int = 40
    taps: int = 4
    dilation: int = 2
    dtype: torch.dtype = torch.float32
    conv: bool = True
    keep: bool = False
    age: bool = False
    history: bool = False
    residual: bool = True
    centred: bool = False
    tail: int | None = None
    out: torch.dtype | None = None

    @property
    def out_dtype(self) -> torch.dtype:
        """The dtype of the output."""
        return self.dtype if self.out is None else self.out


@dataclass(frozen=True, kw_only=True)
class Call:
    """A case's tensors; `leaves` are those with gradients."""

    weights: GateWeights
    hidden: Tensor
    projected: Tensor
    past: Past
    gradient: Tensor
    options: dict[str, Any]

    @property
    def leaves(self) -> list[Tensor]:
        """Hidden states, projections and weights."""
        own = self.weights
        found = (self.hidden, self.projected, own.query, own.key, own.norm, own.taps)
        return [x for x in found if x is not None]

    def wider(self) -> Call:
        """The same numbers in float64."""

        def wide(x: Any) -> Any:
            floats = isinstance(x, Tensor) and x.is_floating_point()
            return x.detach().double().requires_grad_() if floats else x

        own = {f.name: wide(getattr(self.weights, f.name)) for f in fields(self.weights)}
        return Call(
            weights=GateWeights(**own),
            hidden=wide(self.hidden),
            projected=wide(self.projected),
            past=replace(self.past, history=wide(self.past.history)),
            gradient=self.gradient.double(),
            options=self.options | {"dtype": torch.float64},
        )

    def run(self, function: Any) -> tuple[Tensor, Tensor | None]:
        """Output and inputs of an implementation."""
        return function(self.weights, self.hidden, self.projected, self.past, **self.options)

    def gradients(self, function: Any) -> list[Tensor]:
        """The gradients of all leaves."""
        out, _ = self.run(function)
        return list(torch.autograd.grad(out, self.leaves, self.gradient))

    def second_gradients(self, function: Any) -> list[Tensor]:
        """The gradients of a loss with a gradient penalty; that of the sum is a constant."""
        out, _ = self.run(function)
        firsts = torch.autograd.grad(out.float().sum(), self.leaves, create_graph=True)
        loss = out.float().square().sum() + sum(x.float().square().sum() for x in firsts)
        return list(torch.autograd.grad(loss, self.leaves))


def make_call(case: GateCase, device: str = "cpu", seed: int = 0) -> Call:
    """Random tensors; where `keep` is False hidden states are NaN, as attention may leave them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        values = torch.randn(shape, generator=generator) * scale + mean
        return values.to(device, case.dtype).requires_grad_()

    batch, count, streams, width = case.batch, case.count, case.streams, case.width
    mean = 0.0 if case.centred else 1.0
    hidden = random(batch, count, streams, width)
    past = Past(
        keep=_padding(case).to(device) if case.keep else None,
        history=random(batch, (case.taps - 1) * case.dilation, streams * width)
        if case.history
        else None,
        age=_ages(case).to(device) if case.age else None,
    )
    if past.keep is not None:
        hidden = hidden.detach().masked_fill(~past.keep[:, :, None, None], float("nan"))
        hidden.requires_grad_()
    weights = GateWeights(
        query=random(streams, width, scale=0.3, mean=mean),
        key=random(streams, width, scale=0.3, mean=mean),
        eps=1e-6,
        centred=case.centred,
        norm=random(streams, width, scale=0.3, mean=mean) if case.conv else None,
        taps=random(streams * width, 1, case.taps, scale=0.5) if case.conv else None,
        norm_eps=1e-5,
        dilation=case.dilation,
    )
    return Call(
        weights=weights,
        hidden=hidden,
        projected=random(batch, count, streams * width + width),
        past=past,
        gradient=random(*hidden.shape).detach().to(case.out_dtype),
        options={"dtype": case.out_dtype, "residual": case.residual, "tail": case.tail},
    )


def _padding(case: GateCase) -> Tensor:
    keep = torch.ones(case.batch, case.count, dtype=torch.bool)
    keep[0, : case.count // 3] = False
    keep[-1, case.count - 1 :] = False
    return keep


def _ages(case: GateCase) -> Tensor:
    first = case.count // 2
    ages = torch.cat((torch.arange(first), torch.arange(case.count - first)))
    return ages.expand(case.batch, -1)


def far(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected; NaN must meet NaN."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert torch.equal(found.isnan(), expected.isnan())
    found, wide = (x.detach().double().nan_to_num() for x in (found, expected))
    return float((found - wide).norm() / wide.norm().clamp_min(1e-30))


# Half precision: rounding the convolution's inputs may fall on either side, so single values differ
# by a unit in the last place, 2**-8 in bfloat16.
NEAR = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
