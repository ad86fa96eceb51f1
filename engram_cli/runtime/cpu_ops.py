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
from engram_cli.sizes import processors

_EACH = 2**16  # values that a thread gets at least: 50 us, twice what it takes to start it
_NO_EOS = -2


@cache
def _kernels() -> Any:
    """Return the module of the loops, None where Numba is missing or told not to compile."""
    try:
        from engram_cli.runtime import cpu_kernels
    except (ImportError, DependencyError):
        return None
    return cpu_kernels


def takes(*tensors: Tensor | None) -> bool:
    """Return whether these are plain tensors on a CPU, and nobody takes derivatives of them."""
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
    tokens = torch.empty((batch, count, 2), dtype=torch.int64)
    older = torch.empty((batch, tensors.max_order - 1), dtype=torch.int64)
    rows = torch.empty((layers, batch, count, columns), dtype=torch.int64)
    wrong = _kernels().hash_call(
        _array(ids if ids.dtype == torch.int64 else ids.long()),
        _array(tensors.lookup),
        _NO_RECENT if recent is None else _array(recent),
        _NO_BOOLS if dead is None else _array(dead),
        _NO_NUMBERS if age is None else _array(age),
        _array(tensors.multipliers),
        _array(tensors.columns),
        _orders(tensors.orders),
        tensors.filler,
        _NO_EOS if tensors.eos is None else tensors.eos,
        *(tokens.numpy(), older.numpy(), rows.numpy()),
    )
    if wrong >= 0:
        raise no_token(tensors)
    return HashedCall(tokens=tokens[..., 0], seen=tokens[..., 1], older=older, rows=rows)


def takes_gate(weights: GateWeights, hidden: Tensor, projected: Tensor, past: Past) -> bool:
    """Return whether `gate` computes this call: all float32, and what `takes` says."""
    numbers = (hidden, projected, weights.query, weights.key, weights.norm, weights.taps)
    for tensor in numbers:
        if tensor is not None and tensor.dtype != torch.float32:
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
    """`gate_reference.gate` of a call that `takes_gate`."""
    batch, count, streams, width = hidden.shape
    wide, has_conv = streams * width, weights.taps is not None
    out, inputs = torch.empty(hidden.shape), torch.empty((batch, count, wide if has_conv else 0))
    states = _array(hidden).reshape(-1, streams, width)
    lines = _array(projected).reshape(-1, wide + width)
    keep = _NO_FLAGS if past.keep is None else _array(past.keep).reshape(-1)
    age = _NO_AGES if past.age is None else _array(past.age).reshape(-1)
    history = _NO_HISTORY if past.history is None else _array(past.history.float())
    query, key = _array(weights.query), _array(weights.key)
    norm = _NO_NORM if weights.norm is None else _array(weights.norm)
    taps = _NO_NORM if weights.taps is None else _array(weights.taps).reshape(wide, -1)
    rates = weights.eps, weights.norm_eps, float(weights.centred)
    flat = inputs.numpy().reshape(len(states), inputs.shape[2])
    written = flat, out.numpy().reshape(states.shape)
    threads = min(torch.get_num_threads(), len(states) * wide // _EACH)
    kernels, dilation = _kernels(), weights.dilation
    if threads < 2:
        kernels.gate(
            *(count, states, lines, keep, age, history, query, key, norm, taps),
            *(*rates, dilation, residual, *written),
        )
    else:
        gates = np.empty((len(states), streams), np.float32)
        common = (states, lines, keep)
        opened = (*common, query, key, norm, *rates, residual, gates, *written)
        _in_threads(threads, len(states), kernels.open_gates, opened)
        if has_conv:
            convolved = (count, *common, age, history, taps, dilation, residual, gates, *written)
            _in_threads(threads, len(states), kernels.convolve, convolved)
    if not has_conv:
        return out.to(dtype), None
    kept = count if tail is None else min(tail, count)
    last = inputs[:, count - kept :]
    return out.to(dtype), last.clone() if kept < count else last


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

_NO_RECENT = np.empty((0, 0, 0), dtype=np.int64)
_NO_BOOLS, _NO_FLAGS = np.empty((0, 0), dtype=np.bool_), np.empty(0, dtype=np.bool_)
_NO_NUMBERS, _NO_AGES = np.empty((0, 0), dtype=np.int64), np.empty(0, dtype=np.int64)
_NO_NORM = np.empty((0, 0), dtype=np.float32)
_NO_HISTORY = np.empty((0, 0, 0), dtype=np.float32)
