"""The gate with its gradient written out, for training where there are no kernels.

Arguments and results are those of `gate_reference.gate`, equal up to rounding. Autograd would
repeat the two dozen operations of that function and keep what each one needs. Written out, norms
and gates are one number a row, and half of the passes over the values go away.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engram_cli.runtime.gate_reference import (
    MIN_DOT,
    GateWeights,
    Past,
    open_gate,
    twice_differentiable,
    weight_of,
)
from engram_cli.runtime.graph_capture import is_transformed


def applies(weights: GateWeights, hidden: Tensor, projected: Tensor, past: Past) -> bool:
    """Return whether a call is one of a training step: with a gradient, without a history.

    A compiler makes its own gradient, of the twin; so do forward mode and torch.func.
    """
    if not torch.is_grad_enabled() or past.history is not None or torch.compiler.is_compiling():
        return False
    if is_transformed():
        return False
    given = (hidden, projected, weights.query, weights.key, weights.norm, weights.taps)
    return any(tensor is not None and tensor.requires_grad for tensor in given)


def gate(
    weights: GateWeights,
    hidden: Tensor,
    projected: Tensor,
    past: Past,
    *,
    dtype: torch.dtype,
    residual: bool = False,
    tail: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`gate_reference.gate` of a call that `applies`."""
    out, inputs = _Gate.apply(  # type: ignore[no-untyped-call]
        hidden,
        projected,
        weights.query,
        weights.key,
        weights.norm,
        weights.taps,
        past,
        (weights, dtype, residual),
    )
    if weights.taps is None:
        return out, None
    kept = inputs.shape[1] if tail is None else min(tail, inputs.shape[1])
    last = inputs[:, inputs.shape[1] - kept :]
    return out, last.clone() if kept < inputs.shape[1] else last


class _Gate(torch.autograd.Function):
    """Rows are [B, T, S, d], what is one number a row [B, T, S, 1]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, projected: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        query, key, norm, taps, past, (weights, dtype, residual) = rest
        wide = torch.promote_types(hidden.dtype, torch.float32)
        dead = None if past.keep is None else ~past.keep[:, :, None, None]
        query, key = (weight_of(x, wide, weights.centred) for x in (query, key))
        rows, keys, value = _rows(hidden, projected, query.shape, wide, dead)
        roots = _inverse_root(rows, weights.eps), _inverse_root(keys, weights.eps)
        dot = _row_sums(rows * keys, query * key) * roots[0] * roots[1] / math.sqrt(weights.width)
        opened = open_gate(dot)
        out = opened * value
        normed = convolved = root = inputs = None
        if norm is not None and taps is not None:
            mean = value.square().mean(dim=-1, keepdim=True)
            root = torch.rsqrt(opened.square() * mean + weights.norm_eps)
            norm = weight_of(norm, wide, weights.centred)
            inputs = ((opened * root) * (value * norm)).to(projected.dtype)
            inputs = (inputs if dead is None else inputs.masked_fill_(dead, 0)).flatten(2)
            normed = inputs.to(wide)
            convolved = _convolved(normed, _by_tap(taps, wide), weights.dilation, past.age)
            out += F.silu(convolved).view(out.shape)
        if dead is not None:
            out.masked_fill_(dead, 0)
        if residual:
            out += hidden
        ctx.save_for_backward(
            hidden, projected, *rest[:4], *roots, dot, opened, root, normed, convolved
        )
        ctx.past, ctx.weights, ctx.residual, ctx.dtype = past, weights, residual, dtype
        inputs = projected.new_empty(0) if inputs is None else inputs
        ctx.mark_non_differentiable(inputs)
        ctx.set_materialize_grads(False)
        return out.to(dtype), inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 8
        hidden, projected, query, key, norm, taps, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: what is below would count as a constant
            found = twice_differentiable(
                gradient,
                (hidden, projected, query, key, norm, taps),
                ctx.weights,
                ctx.past,
                dtype=ctx.dtype,
                residual=ctx.residual,
            )
            return (*found, None, None)
        query_root, key_root, dot, opened, root, normed, convolved = saved
        weights, keep = ctx.weights, ctx.past.keep
        wide = torch.promote_types(hidden.dtype, torch.float32)
        dead = None if keep is None else ~keep[:, :, None, None]
        query_weight, key_weight = (weight_of(x, wide, weights.centred) for x in (query, key))
        rows, keys, value = _rows(hidden, projected, query.shape, wide, dead)
        whole = gradient.to(wide)
        arrived = whole if dead is None else whole.masked_fill(dead, 0)
        of_projected = torch.empty(projected.shape, dtype=wide, device=projected.device)
        _, of_keys, of_value = _rows(hidden, of_projected, query.shape, wide, None)

        of_opened = (arrived * value).sum(dim=-1, keepdim=True)
        of_value.copy_(_over_streams(opened * arrived))
        of_norm = of_taps = None
        if norm is not None:
            slopes = torch.ops.aten.silu_backward(arrived.flatten(2), convolved)
            of_taps = _tap_gradient(slopes, normed, taps, weights.dilation, ctx.past.age)
            of_normed = _sent_back(slopes, _by_tap(taps, wide), weights.dilation, ctx.past.age)
            of_normed = of_normed.view(arrived.shape)
            if dead is not None:
                of_normed.masked_fill_(dead, 0)
            norm_weight = weight_of(norm, wide, weights.centred)
            products, factor = of_normed * value, opened * root
            of_norm = _column_sums(products, factor)
            of_factor = _row_sums(products, norm_weight) * root**3
            of_opened += of_factor * weights.norm_eps
            of_mean = _over_streams(of_factor * opened**3)
            of_value += _over_streams(of_normed.mul_(norm_weight).mul_(factor))
            of_value.addcmul_(value, of_mean, value=-1 / weights.width)
        # The root of a dot product has no slope where it is cut off.
        steep = (dot.abs() >= MIN_DOT) / (2 * dot.abs().clamp_min(MIN_DOT).sqrt())
        of_dot = of_opened * opened * (1 - opened) * steep
        both = query_root * key_root * (of_dot / math.sqrt(weights.width))
        of_product = _column_sums(rows * keys, both)
        shrunk = of_dot * dot / -weights.width
        weight = query_weight * key_weight
        torch.mul(rows * weight, both, out=of_keys)
        of_keys.addcmul_(keys, shrunk * key_root.square())
        of_rows = (keys * weight).mul_(both).addcmul_(rows, shrunk * query_root.square())
        if ctx.residual:
            of_rows += whole
        return (
            of_rows.to(hidden.dtype),
            of_projected.to(projected.dtype),
            (of_product * key_weight).to(query.dtype),
            (of_product * query_weight).to(key.dtype),
            None if of_norm is None else of_norm.to(norm.dtype),
            None if of_taps is None else of_taps.to(taps.dtype),
            None,
            None,
        )


def _rows(
    hidden: Tensor, projected: Tensor, shape: torch.Size, wide: torch.dtype, dead: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden (0 where dead), keys [B, T, S, d] and the value [B, T, 1, d], in `wide`."""
    projected, rows = projected.to(wide), hidden.to(wide)
    rows = rows if dead is None else rows.masked_fill(dead, 0)
    split = shape.numel()
    return rows, projected[..., :split].view(*rows.shape), projected[..., None, split:]


def _inverse_root(rows: Tensor, eps: float) -> Tensor:
    """Return one over the root of a row's mean square."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() / rows.shape[-1] + eps)


def _row_sums(rows: Tensor, weight: Tensor) -> Tensor:
    """Return [B, T, S, 1]: the sums of rows times `weight` [S, d]."""
    if len(weight) == 1:
        return rows @ weight.t()
    return (rows * weight).sum(dim=-1, keepdim=True)


def _over_streams(rows: Tensor) -> Tensor:
    """Return [B, T, 1, ...]: the sum of the streams."""
    return rows if rows.shape[2] == 1 else rows.sum(dim=2, keepdim=True)


def _column_sums(rows: Tensor, factor: Tensor) -> Tensor:
    """Return [S, d]: the sum over tokens of rows, each times its factor."""
    if rows.shape[2] == 1:
        return factor.reshape(1, -1) @ rows.reshape(-1, rows.shape[-1])
    return (rows * factor).sum(dim=(0, 1))


def _by_tap(taps: Tensor, wide: torch.dtype) -> Tensor:
    """Return [K, S x d]: a tap's weights side by side."""
    return taps.squeeze(1).t().to(wide).contiguous()


def _pairs(length: int, taps: int, dilation: int) -> list[tuple[int, int]]:
    """Return (tap, distance) of taps that reach into a line; the last reads the present."""
    far = [(tap, (taps - 1 - tap) * dilation) for tap in range(taps)]
    return [(tap, distance) for tap, distance in far if distance < length]


def _seen(values: Tensor, age: Tensor | None, distance: int) -> Tensor:
    """Return values [B, T - distance, D], zero where a document begins in between."""
    if age is None or not distance:
        return values
    return values.masked_fill((age[:, distance:] < distance)[:, :, None], 0)


def _convolved(inputs: Tensor, taps: Tensor, dilation: int, age: Tensor | None) -> Tensor:
    """Return [B, T, D]: the causal convolution of inputs [B, T, D] with taps [K, D]."""
    out, count = torch.zeros_like(inputs), inputs.shape[1]
    for tap, distance in _pairs(count, len(taps), dilation):
        source = _seen(inputs[:, : count - distance], age, distance)
        out[:, distance:].addcmul_(source, taps[tap])
    return out


def _sent_back(slopes: Tensor, taps: Tensor, dilation: int, age: Tensor | None) -> Tensor:
    """Return [B, T, D]: the gradient of the convolution's inputs."""
    out, count = torch.zeros_like(slopes), slopes.shape[1]
    for tap, distance in _pairs(count, len(taps), dilation):
        out[:, : count - distance].addcmul_(_seen(slopes[:, distance:], age, distance), taps[tap])
    return out


def _tap_gradient(
    slopes: Tensor, inputs: Tensor, taps: Tensor, dilation: int, age: Tensor | None
) -> Tensor | None:
    """Return [D, 1, K], None where the taps are frozen."""
    if not taps.requires_grad:
        return None
    out = torch.zeros(taps.shape, dtype=slopes.dtype, device=slopes.device)
    count = slopes.shape[1]
    for tap, distance in _pairs(count, taps.shape[-1], dilation):
        of_tap = _seen(slopes[:, distance:], age, distance) * inputs[:, : count - distance]
        out[:, 0, tap] = of_tap.sum(dim=(0, 1))
    return out
