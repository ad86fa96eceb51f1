"""The one place that picks an implementation of the runtime's operations.

Names and signatures are those of `reference`, `lookup_reference` and `gate_reference`, the plain
PyTorch versions that every other implementation must equal. Look-up and gate run as Triton kernels
where their tensors are on a CUDA device and triton can be imported, elsewhere in plain PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engram_cli.errors import TokenIdError
from engram_cli.runtime import (
    gate_autograd,
    gate_reference,
    lookup_reference,
    row_gradients,
    row_steps,
)
from engram_cli.runtime.gate_reference import NO_PAST, GateWeights, Past, opened_by
from engram_cli.runtime.graph_capture import is_transformed
from engram_cli.runtime.lookup_reference import NO_LIMITS, LookBack, common_dtype
from engram_cli.runtime.reference import (
    HashTensors,
    carry_after,
    compress,
    gather,
    hash_rows,
    is_hole,
    visible,
)
from engram_cli.runtime.tables import FLOATS, Table, dequantise

if TYPE_CHECKING:
    from engram_cli.runtime.tiers.hot_set import HotSet
    from engram_cli.runtime.tiers.records import TierBuffers

__all__ = [
    "GateWeights",
    "HashTensors",
    "LookBack",
    "Past",
    "Table",
    "adagrad_step",
    "adam_step",
    "carry_after",
    "check_ids",
    "cold_keys",
    "compress",
    "find_rows",
    "find_slots",
    "gate",
    "gather",
    "has_kernels",
    "hash_rows",
    "is_hole",
    "look_up",
    "look_up_step",
    "opened_by",
    "read_tiers",
    "sum_rows",
    "visible",
]


def _asked_for(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


# Read once: torch.compile cannot trace these.
DEBUG = _asked_for("ENGRAM_DEBUG")
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = _asked_for("TRITON_INTERPRET")
_WIDEST_GRADIENT = 8192  # values of a row, in one program


def look_up(
    tensors: HashTensors,
    ids: Tensor,
    tables: Sequence[Table],
    look_back: LookBack = NO_LIMITS,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """[L, *ids.shape, C x dim] in `dtype`: vectors of raw token ids (`lookup_reference.look_up`).

    One operator where there are kernels. Ids outside the vocabulary count as the filler, unless
    ENGRAM_DEBUG is set: then they raise TokenIdError. Raises InputError.
    """
    _debug(tensors, ids)
    # No kernel has the fold "powers".
    if tensors.summed or not has_kernels(ids.device) or is_transformed():
        return lookup_reference.look_up(tensors, ids, tables, look_back, dtype)
    look_back.check(ids, tensors.max_order)
    wanted = common_dtype(tensors, ids, tables, dtype)
    if not _decoded_by_kernels(tables):
        return lookup_reference.vectors(tables, find_rows(tensors, ids, look_back), wanted)
    from engram_cli.runtime import torch_ops

    return torch_ops.call(torch_ops.look_up, ids, tensors, look_back, tables, wanted)


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
    longest = ids.numel() if look_back.bounds is not None else ids.shape[1]
    if not _decoded_by_kernels(tables) or longest > history.shape[1] - (tensors.max_order - 1):
        with torch.no_grad():
            long = look_up(tensors, ids, tables, look_back, dtype)
        lookup_reference.remember(tensors, ids, look_back)
        return long
    look_back.check(ids, tensors.max_order)
    wanted = common_dtype(tensors, ids, tables, dtype)
    assert look_back.positions is not None
    from engram_cli.runtime import torch_ops

    return torch_ops.call(torch_ops.look_up_step, ids, tensors, look_back, tables, wanted)


def find_rows(tensors: HashTensors, ids: Tensor, look_back: LookBack = NO_LIMITS) -> Tensor:
    """int64[L, *ids.shape, C]: the table rows of raw token ids (`lookup_reference.find_rows`)."""
    _debug(tensors, ids)
    if tensors.summed or not has_kernels(ids.device) or is_transformed():
        return lookup_reference.find_rows(tensors, ids, look_back)
    look_back.check(ids, tensors.max_order)
    from engram_cli.runtime import torch_ops

    return torch_ops.call(torch_ops.find_rows, ids, tensors, look_back)


def read_tiers(tier_buffers: TierBuffers, rows: Tensor, slots: Tensor | None, out: Tensor) -> None:
    """Write the vectors of rows int64[n] in tiers to `out` [n, dim] (`records.read`)."""
    if not has_kernels(out.device):
        from engram_cli.runtime.tiers import records

        records.read(tier_buffers, rows, slots, out)
        return
    from engram_cli.runtime.kernels import tiers

    if tier_buffers.form.has_kernel:
        tiers.read(tier_buffers, rows, slots, out)
        return
    table = tier_buffers.form.table(tiers.read_records(tier_buffers, rows, slots))
    out.copy_(dequantise(table, torch.arange(len(rows), device=out.device), out.dtype))


def cold_keys(rows: Tensor, hot: HotSet | None, height: int) -> Tensor:
    """Rows int64[n] with `height` for each hot one (`records.cold_keys`)."""
    if not has_kernels(rows.device):
        from engram_cli.runtime.tiers import records

        return records.cold_keys(rows, hot, height)
    from engram_cli.runtime.kernels import tiers

    return tiers.cold_keys(rows, hot, height)


def find_slots(
    keys: Tensor, order: Tensor, height: int, slots: Tensor, found: Tensor, counted: Tensor
) -> None:
    """Number the distinct ones of sorted keys [n], and count them (`records.find_slots`)."""
    if not has_kernels(keys.device):
        from engram_cli.runtime.tiers import records

        records.find_slots(keys, order, height, slots, found, counted)
        return
    from engram_cli.runtime.kernels import tiers

    tiers.find_slots(keys, order, height, slots, found, counted)


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
    """`gate_reference.gate`: what the memory adds to `hidden`, or the sum, and the conv's inputs.

    One operator where there are kernels; a gradient beside a history is the twin's work, too.
    """
    fits = all(x.dtype in FLOATS for x in (hidden, projected, weights.query))
    needs_gradient = torch.is_grad_enabled() and past.history is not None
    if not fits or needs_gradient or not has_kernels(hidden.device) or is_transformed():
        if not gate_autograd.applies(weights, hidden, projected, past):
            return gate_reference.gate(
                weights, hidden, projected, past, dtype=dtype, residual=residual, tail=tail
            )
        gate_reference.check(weights, hidden, projected, past)
        return gate_autograd.gate(
            weights, hidden, projected, past, dtype=dtype, residual=residual, tail=tail
        )
    gate_reference.check(weights, hidden, projected, past)
    from engram_cli.runtime import torch_ops_gate

    return torch_ops_gate.run_gate(
        weights, hidden, projected, past, dtype=dtype, residual=residual, tail=tail
    )


def sum_rows(values: Tensor, rows: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """The rows that occur and the sums of their vectors (`row_gradients.sum_rows`)."""
    if not _adds_by_kernel(values):
        return row_gradients.sum_rows(values, rows, height)
    from engram_cli.runtime import torch_ops_rows

    found, sums = torch_ops_rows.sum_rows(values, rows, height)
    return found, sums


def adagrad_step(
    weight: Tensor, sums: Tensor, values: Tensor, rows: Tensor, lr: float, eps: float
) -> None:
    """One step of row-wise Adagrad, in place (`row_steps.adagrad_step`)."""
    if not _adds_by_kernel(values, weight):
        row_steps.adagrad_step(weight, sums, values, rows, lr, eps)
        return
    from engram_cli.runtime import torch_ops_rows

    torch_ops_rows.adagrad_step(weight, sums, values, rows, lr, eps)


def adam_step(
    weight: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    values: Tensor,
    rows: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of Adam for the rows with a gradient, in place (`row_steps.adam_step`)."""
    if not _adds_by_kernel(values, weight):
        row_steps.adam_step(weight, state, values, rows, lr, betas, eps)
        return
    from engram_cli.runtime import torch_ops_rows

    torch_ops_rows.adam_step(weight, state, values, rows, lr, betas, eps)


def _adds_by_kernel(values: Tensor, weight: Tensor | None = None) -> bool:
    """Whether the kernels add up such gradients, and step in such a table."""
    fits = values.dtype in FLOATS and values.shape[1] <= _WIDEST_GRADIENT
    if weight is not None:
        fits = fits and weight.dtype in FLOATS and weight.stride(1) == 1
    return fits and has_kernels(values.device)


def check_ids(tensors: HashTensors, ids: Tensor) -> None:
    """Raises TokenIdError where an id is outside the vocabulary; waits for the device."""
    bad = ((ids < 0) | (ids >= len(tensors.lookup))).nonzero()
    if len(bad):
        place = tuple(bad[0].tolist())
        raise TokenIdError(
            f"token id {int(ids[place])} at {place} is outside 0..{len(tensors.lookup) - 1}",
            "was the text tokenised with another tokenizer?",
        )


def has_kernels(device: torch.device) -> bool:
    """Whether kernels run on `device`; warns where a GPU has to do without."""
    if device.type == "cuda" and not _HAS_TRITON:
        warnings.warn(
            "triton is not installed: the memory runs as plain torch operations, several times "
            "slower; python -m pip install triton",
            stacklevel=3,
        )
    # Triton's interpreter runs kernels on the CPU, for tests.
    return _HAS_TRITON and (device.type == "cuda" or (_INTERPRETED and device.type == "cpu"))


def _decoded_by_kernels(tables: Sequence[Table]) -> bool:
    """Whether kernels know how the rows are stored; warns where a GPU has to do without."""
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
