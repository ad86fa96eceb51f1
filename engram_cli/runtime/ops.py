"""Picks an implementation of each operation of the runtime; no other module chooses.

Names and signatures are those of `lookup_reference`, `gate_reference`, `row_gradients` and
`tiers.records`, the plain PyTorch versions that every other implementation must equal. Triton
kernels run where the tensors are on a CUDA device and triton can be imported.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engram_cli.errors import TokenIdError
from engram_cli.runtime import (
    cpu_ops,
    gate_autograd,
    gate_reference,
    lookup_reference,
    reference,
    row_gradients,
)
from engram_cli.runtime.gate_reference import NO_PAST, GateWeights, Past
from engram_cli.runtime.graph_capture import is_transformed
from engram_cli.runtime.lookup_reference import NO_LIMITS, LookBack, common_dtype
from engram_cli.runtime.reference import HashedCall, HashTensors
from engram_cli.runtime.row_gradients import Rate
from engram_cli.runtime.tables import FLOATS, Table, dequantise

if TYPE_CHECKING:
    from engram_cli.runtime.sharding.registry import DistributedTables
    from engram_cli.runtime.tiers.hot_set import HotSet
    from engram_cli.runtime.tiers.records import TierBuffers

__all__ = ["HashTensors", "LookBack", "Table", "find_rows", "look_up", "look_up_step"]


def _asked_for(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


# Read once: torch.compile cannot trace these.
DEBUG = _asked_for("ENGRAM_DEBUG")
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = _asked_for("TRITON_INTERPRET")
_FEW = 8  # tokens of a decode step; more are left to products of matrices
_WIDEST_GRADIENT = 8192  # values of a row, in one program


def look_up(
    tensors: HashTensors,
    ids: Tensor,
    tables: Sequence[Table],
    look_back: LookBack = NO_LIMITS,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the vectors [L, *ids.shape, C x dim] of raw token ids (`lookup_reference.look_up`).

    One operator where there are kernels. Ids outside the vocabulary count as the filler, unless
    ENGRAM_DEBUG is set: then they raise TokenIdError. Raises InputError.
    """
    _debug(tensors, ids)
    # No kernel has the fold "powers".
    if tensors.summed or not has_kernels(ids.device) or is_transformed():
        return lookup_reference.look_up(tensors, ids, tables, look_back, dtype)
    from engram_cli.runtime import torch_ops

    found = torch_ops.again(torch_ops.look_up, ids, tensors, look_back, tables, dtype)
    if found is not None:
        return found
    look_back.check(ids, tensors.max_order)
    wanted = common_dtype(tensors, ids, tables, dtype)
    if not _decoded_by_kernels(tables):
        return lookup_reference.vectors(tables, find_rows(tensors, ids, look_back), wanted)
    return torch_ops.call(torch_ops.look_up, ids, tensors, look_back, tables, wanted)


def look_up_shards(
    tensors: HashTensors, ids: Tensor, tables: DistributedTables, look_back: LookBack = NO_LIMITS
) -> Tensor:
    """Return what `look_up` does, of rows that are distributed over GPUs."""
    _debug(tensors, ids)
    look_back.check(ids, tensors.max_order)
    if tensors.summed or not has_kernels(ids.device) or is_transformed():
        rows = lookup_reference.find_rows(tensors, ids, look_back)
        return torch.stack([tables.read(place, own) for place, own in enumerate(rows)])
    from engram_cli.runtime import torch_ops

    return torch_ops.call_shards(ids, tensors, look_back, tables)


def look_up_step(
    tensors: HashTensors,
    ids: Tensor,
    tables: Sequence[Table],
    look_back: LookBack,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`look_up` that also writes the tokens into `look_back.history`: a decode step.

    One launch while a sequence has no more new tokens than the history has cells beyond N - 1.
    """
    _debug(tensors, ids)
    look_back.check_step()
    history = look_back.history
    if history is None or tensors.summed or not has_kernels(ids.device):
        return lookup_reference.look_up_step(tensors, ids, tables, look_back, dtype)
    from engram_cli.runtime import torch_ops

    found = torch_ops.again(torch_ops.look_up_step, ids, tensors, look_back, tables, dtype)
    if found is not None:
        return found
    longest = ids.numel() if look_back.bounds is not None else ids.shape[1]
    if not _decoded_by_kernels(tables) or longest > history.shape[1] - (tensors.max_order - 1):
        with torch.no_grad():
            long = look_up(tensors, ids, tables, look_back, dtype)
        lookup_reference.remember(tensors, ids, look_back)
        return long
    look_back.check(ids, tensors.max_order)
    wanted = common_dtype(tensors, ids, tables, dtype)
    assert look_back.positions is not None
    return torch_ops.call(torch_ops.look_up_step, ids, tensors, look_back, tables, wanted)


def find_rows(tensors: HashTensors, ids: Tensor, look_back: LookBack = NO_LIMITS) -> Tensor:
    """Return int64[L, *ids.shape, C], the rows of raw token ids (`lookup_reference.find_rows`)."""
    _debug(tensors, ids)
    if tensors.summed or not has_kernels(ids.device) or is_transformed():
        return lookup_reference.find_rows(tensors, ids, look_back)
    from engram_cli.runtime import torch_ops

    found = torch_ops.again(torch_ops.find_rows, ids, tensors, look_back)
    if found is not None:
        return found
    look_back.check(ids, tensors.max_order)
    return torch_ops.call(torch_ops.find_rows, ids, tensors, look_back)


def hash_call(
    tensors: HashTensors,
    ids: Tensor,
    recent: Tensor | None,
    dead: Tensor | None,
    age: Tensor | None,
) -> HashedCall:
    """Return the rows of a call, and what decoding remembers of its ids (`reference.hash_call`).

    Raises TokenIdError.
    """
    of_hash = (tensors.lookup, tensors.multipliers, tensors.columns)
    if not tensors.summed and cpu_ops.takes(ids, recent, dead, age, *of_hash):
        return cpu_ops.hash_call(tensors, ids, recent, dead, age)
    return reference.hash_call(tensors, ids, recent, dead, age)


def takes_decode_step(ids: Tensor) -> bool:
    """Return whether the loops of `cpu_decode` may run a call of these ids [B, T]."""
    if torch.is_grad_enabled() or not cpu_ops.takes(ids) or has_kernels(ids.device):
        return False
    return ids.numel() <= _FEW and not torch.is_autocast_enabled("cpu")


def read_tiers(tier_buffers: TierBuffers, rows: Tensor, slots: Tensor | None, out: Tensor) -> None:
    """Write the vectors of rows int64[n] in tiers to `out` [n, dim] (`records.read`)."""
    tiers = _tiers(out.device)
    if tier_buffers.form.has_kernel or not has_kernels(out.device):
        tiers.read(tier_buffers, rows, slots, out)
        return
    table = tier_buffers.form.table(tiers.read_records(tier_buffers, rows, slots))
    out.copy_(dequantise(table, torch.arange(len(rows), device=out.device), out.dtype))


def cold_keys(rows: Tensor, hot: HotSet | None, height: int) -> Tensor:
    """Return rows int64[n] with `height` for each hot one (`records.cold_keys`)."""
    keys: Tensor = _tiers(rows.device).cold_keys(rows, hot, height)
    return keys


def find_slots(
    keys: Tensor, order: Tensor, height: int, slots: Tensor, found: Tensor, counted: Tensor
) -> None:
    """Number the distinct ones of sorted keys [n], and count them (`records.find_slots`)."""
    _tiers(keys.device).find_slots(keys, order, height, slots, found, counted)


def _tiers(device: torch.device) -> Any:
    if has_kernels(device):
        from engram_cli.runtime.kernels import tiers

        return tiers
    from engram_cli.runtime.tiers import records

    return records


def gate(
    weights: GateWeights,
    hidden: Tensor,
    projected: Tensor,
    past: Past = NO_PAST,
    *,
    dtype: torch.dtype,
    residual: bool = False,
    tail: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return what the memory adds to `hidden`, or the sum, and the convolution's inputs.

    As `gate_reference.gate`, which alone gives a gradient to a call with a history. One operator
    where there are kernels.
    """
    run: Any
    fits = all(x.dtype in FLOATS for x in (hidden, projected, weights.query))
    needs_gradient = torch.is_grad_enabled() and past.history is not None
    if fits and not needs_gradient and has_kernels(hidden.device) and not is_transformed():
        from engram_cli.runtime.torch_ops_gate import run_gate as run
    elif gate_autograd.applies(weights, hidden, projected, past):
        run = gate_autograd.gate
    elif cpu_ops.takes_gate(weights, hidden, projected, past) and dtype in FLOATS:
        run = cpu_ops.gate
    else:
        return gate_reference.gate(
            weights, hidden, projected, past, dtype=dtype, residual=residual, tail=tail
        )
    gate_reference.check(weights, hidden, projected, past)
    found: tuple[Tensor, Tensor | None] = run(
        weights, hidden, projected, past, dtype=dtype, residual=residual, tail=tail
    )
    return found


def sum_rows(values: Tensor, rows: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Return the rows that occur and the sums of their vectors (`row_gradients.sum_rows`)."""
    found, sums = _row_functions(values).sum_rows(values, rows, height)
    return found, sums


def sum_sorted(values: Tensor, keys: Tensor, order: Tensor, segments: Tensor, count: int) -> Tensor:
    """Return the sums of vectors whose keys are equal (`row_gradients.sum_sorted`)."""
    sums: Tensor = _row_functions(values).sum_sorted(values, keys, order, segments, count)
    return sums


def adagrad_step(
    weight: Tensor, sums: Tensor, values: Tensor, rows: Tensor, lr: Rate, eps: float
) -> None:
    """Take one step of row-wise Adagrad, in place (`row_gradients.adagrad_step`)."""
    _row_functions(values, weight).adagrad_step(weight, sums, values, rows, lr, eps)


def adam_step(
    weight: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    values: Tensor,
    rows: Tensor,
    lr: Rate,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Take one step of Adam for the rows with a gradient, in place (`row_gradients.adam_step`)."""
    _row_functions(values, weight).adam_step(weight, state, values, rows, lr, betas, eps)


def _row_functions(values: Tensor, weight: Tensor | None = None) -> Any:
    """Return what adds up such gradients, and steps in such a table."""
    fits = values.dtype in FLOATS and values.shape[1] <= _WIDEST_GRADIENT
    if weight is not None:
        fits = fits and weight.dtype in FLOATS and weight.stride(1) == 1
    if not fits or not has_kernels(values.device):
        return row_gradients
    from engram_cli.runtime import torch_ops_rows

    return torch_ops_rows


def check_ids(tensors: HashTensors, ids: Tensor) -> None:
    """Raise TokenIdError where an id is outside the vocabulary; waits for the device."""
    bad = ((ids < 0) | (ids >= len(tensors.lookup))).nonzero()
    if len(bad):
        place = tuple(bad[0].tolist())
        raise TokenIdError(
            f"token id {int(ids[place])} at {place} is outside 0..{len(tensors.lookup) - 1}",
            "was the text tokenised with another tokenizer?",
        )


def has_kernels(device: torch.device) -> bool:
    """Return whether kernels run on `device`; warn where a GPU has to do without."""
    if device.type == "cuda" and not _HAS_TRITON:
        warnings.warn(
            "triton is not installed: the memory runs as plain torch operations, several times "
            "slower; python -m pip install triton",
            stacklevel=3,
        )
    # Triton's interpreter runs kernels on the CPU, for tests.
    return _HAS_TRITON and (device.type == "cuda" or (_INTERPRETED and device.type == "cpu"))


def _decoded_by_kernels(tables: Sequence[Table]) -> bool:
    """Return whether kernels know how the rows are stored; warn where a GPU has to do without."""
    if all(table.has_kernel for table in tables):
        return True
    if tables[0].values.is_cuda:
        warnings.warn(
            f"rows stored as {tables[0].row_type.name} have no kernel: "
            "their rows are found by one and decoded as plain torch operations",
            stacklevel=3,
        )
    return False


def _debug(tensors: HashTensors, ids: Tensor) -> None:
    if DEBUG:
        check_ids(tensors, ids)
