"""The gate as torch operators, so that torch.compile and CUDA graphs see one op each.

`engram::gate` and `engram::gate_backward` run the kernels of `kernels.gate` and `kernels.conv`.
Arguments are flat because operators take tensors, numbers and dtypes only. Without gradients the
forward skips torch's dispatcher where nothing needs it (`graph_capture.is_plain_call`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engram_cli.runtime.gate_reference import GateWeights, Past, twice_differentiable
from engram_cli.runtime.graph_capture import is_plain_call


def run_gate(
    weights: GateWeights,
    hidden: Tensor,
    projected: Tensor,
    past: Past,
    *,
    dtype: torch.dtype,
    residual: bool,
    tail: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Run `gate_reference.gate` as an operator."""
    count = hidden.shape[1]
    given = (hidden, projected, weights.query, weights.key, weights.norm, weights.taps)
    plain = is_plain_call(*given, past.keep, past.age, past.history)
    trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    out, inputs, _ = (_gate if plain and not trains else gate)(
        hidden,
        projected,
        weights.query,
        weights.key,
        weights.norm,
        weights.taps,
        past.keep,
        past.age,
        None if past.history is None else past.history.detach(),
        weights.eps,
        weights.norm_eps,
        weights.dilation,
        weights.centred,
        residual,
        dtype,
        count if tail is None else min(tail, count),
    )
    return out, None if weights.taps is None else inputs.detach()


def _gate(
    hidden: Tensor,
    projected: Tensor,
    query: Tensor,
    key: Tensor,
    norm: Tensor | None,
    taps: Tensor | None,
    keep: Tensor | None,
    age: Tensor | None,
    history: Tensor | None,
    eps: float,
    norm_eps: float,
    dilation: int,
    centred: bool,
    residual: bool,
    dtype: torch.dtype,
    tail: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`gate_reference.gate`'s output and inputs, and float32[5, rows] for the backward."""
    from engram_cli.runtime.kernels import gate as kernels
    from engram_cli.runtime.kernels.conv import convolve

    out = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
    flat, lines = _flat(hidden, projected)
    padding = _bytes(keep)
    facts = kernels.gate(
        None if norm is not None else out.view(flat.shape),
        flat,
        lines,
        query.contiguous(),
        key.contiguous(),
        padding,
        eps=eps,
        norm_eps=norm_eps,
        centred=centred,
        residual=residual,
    )
    if norm is None or taps is None:
        return out, projected.new_empty(0), facts
    inputs = convolve(
        out.view(flat.shape),
        flat,
        lines,
        norm.contiguous(),
        _by_tap(taps),
        padding,
        None if age is None else age.contiguous(),
        None if history is None else history.contiguous(),
        facts,
        line=hidden.shape[1],
        tail=tail,
        dilation=dilation,
        centred=centred,
        residual=residual,
    )
    return out, inputs, facts


gate = torch.library.custom_op("engram::gate", _gate, mutates_args=())


@gate.register_fake
def _(hidden, projected, query, key, norm, taps, *rest):  # type: ignore[no-untyped-def]
    batch, count, streams, width = hidden.shape
    dtype, tail = rest[-2:]
    facts = hidden.new_empty((5, batch * count * streams), dtype=torch.float32)
    shape = 0 if norm is None else (batch, tail, streams * width)
    out = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
    return out, projected.new_empty(shape), facts


@torch.library.custom_op("engram::gate_backward", mutates_args=())
def gate_backward(
    gradient: Tensor,
    hidden: Tensor,
    projected: Tensor,
    query: Tensor,
    key: Tensor,
    norm: Tensor | None,
    taps: Tensor | None,
    keep: Tensor | None,
    age: Tensor | None,
    facts: Tensor,
    norm_eps: float,
    dilation: int,
    centred: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, projected, query, key, norm and taps; empty where None."""
    from engram_cli.runtime.kernels import gate as kernels
    from engram_cli.runtime.kernels.conv_backward import conv_backward

    flat, lines = _flat(hidden, projected)
    gradient, padding = gradient.contiguous().view(flat.shape), _bytes(keep)
    conv = None
    norm_gradient, taps_gradient = query.new_empty(0), query.new_empty(0)
    if norm is None or taps is None:
        slopes = kernels.gate_slopes(gradient, lines, padding)
    else:
        slopes, factor_slopes, value_gradient, norm_sum, taps_sum = conv_backward(
            gradient,
            lines,
            norm.contiguous(),
            _by_tap(taps),
            padding,
            None if age is None else age.contiguous(),
            facts,
            line=hidden.shape[1],
            dilation=dilation,
            centred=centred,
        )
        conv = value_gradient, factor_slopes
        norm_gradient = norm_sum.to(norm.dtype)
        taps_gradient = taps_sum.t().to(taps.dtype).contiguous().view(taps.shape)
    of_hidden, of_projected, product = kernels.gate_backward(
        gradient,
        flat,
        lines,
        query.contiguous(),
        key.contiguous(),
        padding,
        facts,
        slopes,
        conv,
        norm_eps=norm_eps,
        centred=centred,
        residual=residual,
    )
    return (
        of_hidden.view(hidden.shape),
        of_projected.view(projected.shape),
        (product * (key + centred)).to(query.dtype),
        (product * (query + centred)).to(key.dtype),
        norm_gradient,
        taps_gradient,
    )


@gate_backward.register_fake
def _(gradient, hidden, projected, query, key, norm, taps, *rest):  # type: ignore[no-untyped-def]
    weights = [query.new_empty(0) if w is None else torch.empty_like(w) for w in (norm, taps)]
    found = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (hidden, projected))
    return (*found, torch.empty_like(query), torch.empty_like(key), *weights)


def _flat(hidden: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden [tokens, S, d] and projected [tokens, S x d + d], contiguous."""
    return hidden.contiguous().flatten(0, 1), projected.contiguous().flatten(0, 1)


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _by_tap(taps: Tensor) -> Tensor:
    """Return the taps as float32[K, S x d], contiguous for each tap."""
    return taps.squeeze(1).t().float().contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, history = inputs[:8], inputs[8]
    assert history is None, "gradients of a call with a history are computed by gate_reference"
    ctx.save_for_backward(*tensors, output[2])
    ctx.eps, *ctx.numbers, ctx.dtype = inputs[9:15]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, *state: Tensor | None) -> tuple[Any, ...]:
    if gradient is None:
        return (None,) * 16
    *tensors, facts = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph: the operator's own gradients have no derivative
        return (*_twice_differentiable(ctx, gradient, tensors), *[None] * 10)
    found = gate_backward(gradient, *tensors, facts, *ctx.numbers)
    given = [None if of is None else own for of, own in zip(tensors[:6], found, strict=True)]
    return (*given, *[None] * 10)


def _twice_differentiable(ctx: Any, gradient: Tensor, tensors: list[Tensor]) -> list[Tensor | None]:
    """Return the gradients of the first six tensors, by `gate_reference.twice_differentiable`."""
    *given, keep, age = tensors
    norm_eps, dilation, centred, residual = ctx.numbers
    names = dict(zip(("query", "key", "norm", "taps"), given[2:], strict=True))
    weights = GateWeights(
        **names, eps=ctx.eps, centred=centred, norm_eps=norm_eps, dilation=dilation
    )
    past = Past(keep=keep, age=age)
    return twice_differentiable(gradient, given, weights, past, dtype=ctx.dtype, residual=residual)


gate.register_autograd(_backward, setup_context=_setup)
