"""The hash and the gate of a call on a CPU, by the loops of `cpu_kernels`.

Numba is loaded with the first call. Where it cannot compile, and for all that the loops do not
take, the plain twins run: `reference.hash_call` and `gate_reference.gate`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import DependencyError
from engram_cli.runtime.gate_reference import GateWeights, Past
from engram_cli.runtime.graph_capture import is_plain_call, is_transformed
from engram_cli.runtime.reference import HashedCall, HashTensors, no_token
from engram_cli.runtime.tables import FLOATS
from engram_cli.sizes import processors

_EACH = 2**16  # values that a thread gets at least: 50 us, twice what it takes to start it
NO_EOS = -2


@cache
def _kernels() -> Any:
    """Return the module of the loops, None where Numba is missing or told not to compile."""
    try:
        from engram_cli.runtime import cpu_kernels
    except (ImportError, DependencyError):
        return None
    return cpu_kernels


def takes(*tensors: Tensor | None) -> bool:
    """Return whether these are plain tensors on a CPU that no derivative is taken of."""
    if not is_plain_call(*tensors) or is_transformed():
        return False
    wants_gradient = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu" or (wants_gradient and tensor.requires_grad):
            return False
    return _kernels() is not None


@cache
def _orders(orders: tuple[int, ...]) -> NDArray[np.int64]:
    return np.array(orders, dtype=np.int64)


def hash_call(
    tensors: HashTensors,
    ids: Tensor,
    recent: Tensor | None,
    dead: Tensor | None,
    age: Tensor | None,
) -> HashedCall:
    """`reference.hash_call` of tensors that `takes` allows, not of a `summed` hash."""
    batch, count = ids.shape
    layers, columns = tensors.columns.shape[:2]
    known, older = 0 if recent is None else recent.shape[1], tensors.max_order - 1
    tokens = torch.empty((batch, count, 2), dtype=torch.int64)
    outcome = torch.empty(batch * older + layers * batch * count * columns, dtype=torch.int64)
    ids = ids.contiguous() if ids.dtype == torch.int64 else ids.long().contiguous()
    given = tuple(
        None if x is None else x.contiguous()
        for x in (tensors.lookup, recent, dead, age, tensors.multipliers, tensors.columns)
    )
    wrong = _kernels().hash_at(
        _orders(tensors.orders),
        *(batch, count, known, known, count, len(tensors.lookup), layers, older + 1, columns),
        *(tensors.filler, NO_EOS if tensors.eos is None else tensors.eos),
        *(ids.data_ptr(), *map(_address, given), tokens.data_ptr(), outcome.data_ptr()),
    )
    if wrong >= 0:
        raise no_token(tensors)
    before, rows = outcome[: batch * older], outcome[batch * older :]
    return HashedCall(
        tokens=tokens[..., 0],
        seen=tokens[..., 1],
        older=before.view(batch, older),
        rows=rows.view(layers, batch, count, columns),
    )


def _address(tensor: Tensor | None) -> int:
    """Return where a tensor's numbers are, 0 where there are none."""
    return 0 if tensor is None else tensor.data_ptr()


def takes_gate(weights: GateWeights, hidden: Tensor, projected: Tensor, past: Past) -> bool:
    """Return whether `gate` computes this call: no wide numbers, and what `takes` says."""
    numbers = (hidden, projected, weights.query, weights.key, weights.norm, weights.taps)
    for tensor in numbers:
        if tensor is not None and tensor.dtype not in FLOATS:
            return False
    return takes(*numbers, past.keep, past.age, past.history)


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
    """`gate_reference.gate` of a call that `takes_gate`; halves are widened before the loops."""
    batch, count, streams, width = hidden.shape
    wide, has_conv = streams * width, weights.taps is not None
    out, inputs = torch.empty(hidden.shape), torch.empty((batch, count, wide if has_conv else 0))
    norms = (weights.query, weights.key, weights.norm, weights.taps)
    floats = (hidden, projected, past.history, *norms)
    states, lines, history, *own = (None if x is None else x.float() for x in floats)
    given = tuple(
        None if x is None else x.contiguous()
        for x in (states, lines, past.keep, past.age, history, *own)
    )
    rates = weights.eps, weights.norm_eps, float(weights.centred)
    threads = max(1, min(torch.get_num_threads(), batch * count * wide // _EACH))
    is_rounded = projected.dtype != torch.float32  # decoding keeps rounded inputs: read the same
    if threads == 1 and not is_rounded:
        each = 0 if weights.taps is None else weights.taps.shape[-1]
        _kernels().gate_at(
            *(batch, count, streams, width, each, weights.dilation),
            *(*map(_address, given), inputs.data_ptr(), out.data_ptr(), *rates, residual),
        )
    else:
        stored = projected.dtype if is_rounded else None
        _gate_in_threads(threads, given, weights.dilation, (*rates, residual), inputs, out, stored)
    if not has_conv:
        return out.to(dtype), None
    kept = count if tail is None else min(tail, count)
    last = inputs[:, count - kept :].to(projected.dtype)
    return out.to(dtype), last.clone() if kept < count and not is_rounded else last


def _gate_in_threads(
    threads: int,
    given: tuple[Tensor | None, ...],
    dilation: int,
    rates: tuple[Any, ...],
    inputs: Tensor,
    out: Tensor,
    stored: torch.dtype | None,
) -> None:
    """Write `inputs` and `out` of the contiguous tensors `given`, one piece of them a thread.

    `stored`: what the inputs are rounded to.
    """
    _, count, streams, width = out.shape
    keep, age, history, norm, taps = (
        empty if tensor is None else _array(tensor)
        for tensor, empty in zip((*given[2:5], *given[7:]), _NOTHING, strict=True)
    )
    hidden, projected, query, key = (_array(x) for x in (*given[:2], *given[5:7]) if x is not None)
    tokens = len(out) * count
    sums = out.numpy().reshape(tokens, streams, width)
    written = inputs.numpy().reshape(tokens, inputs.shape[2]), sums
    gates = np.empty((tokens, streams), np.float32)
    lines = (
        hidden.reshape(sums.shape),
        projected.reshape(tokens, projected.shape[2]),
        keep.reshape(-1),
    )
    opened = (*lines, query, key, norm, *rates, gates, *written)
    _in_threads(threads, tokens, _kernels().open_gates, opened)
    if inputs.shape[2]:
        if stored is not None:
            inputs.copy_(inputs.to(stored))
        past = (age.reshape(-1), history, taps.reshape(streams * width, -1))
        convolved = (count, *lines, *past, dilation, rates[-1], gates, *written)
        _in_threads(threads, tokens, _kernels().convolve, convolved)


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return the memory of a tensor, or of a copy in one piece."""
    own = tensor.detach() if tensor.requires_grad else tensor
    found: NDArray[Any] = own.contiguous().numpy()
    return found


def _in_threads(threads: int, tokens: int, loop: Callable[..., None], given: Sequence[Any]) -> None:
    """Run `loop(begin, end, *given)` over all tokens, cut into one piece a thread."""
    cuts = [tokens * i // threads for i in range(threads + 1)]
    others = [_pool().submit(loop, *cuts[i : i + 2], *given) for i in range(1, threads)]
    loop(0, cuts[1], *given)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(processors(), thread_name_prefix="engram-cpu")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its threads

# For `keep`, `age`, `history`, `norm` and `taps`.
_NOTHING: tuple[NDArray[Any], ...] = (
    np.empty(0, dtype=np.bool_),
    np.empty(0, dtype=np.int64),
    np.empty((0, 0, 0), dtype=np.float32),
    np.empty((0, 0), dtype=np.float32),
    np.empty((0, 0), dtype=np.float32),
)
