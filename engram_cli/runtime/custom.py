"""The look-up as torch operators, so that torch.compile and CUDA graphs see one op each.

`engram::look_up`, `engram::find_rows` and `engram::look_up_step` run the kernel of
`kernels.lookup`; arguments are flat because operators take tensors, integers and lists only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engram_cli.runtime.gathering import LookBack
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.tables import Table


def hash_arguments(tensors: HashTensors) -> tuple[Any, ...]:
    """The hash as the operators take it."""
    eos = -1 if tensors.eos is None else tensors.eos
    constants = (list(tensors.orders), tensors.filler, eos, tensors.salted)
    return (tensors.lookup, tensors.multipliers, tensors.columns, *constants)


def table_arguments(tables: Sequence[Table]) -> tuple[list[Tensor], list[Tensor], str]:
    """The rows, the scales and the kind of tables as the operators take them."""
    scales = [table.scales for table in tables if table.scales is not None]
    return [table.values for table in tables], scales, tables[0].kind


@torch.library.custom_op("engram::look_up", mutates_args=())
def look_up(
    ids: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    kind: str,
    dtype: torch.dtype,
    lookup: Tensor,
    multipliers: Tensor,
    columns: Tensor,
    orders: Sequence[int],
    filler: int,
    eos: int,
    salted: bool,
    dead: Tensor | None,
    ages: Tensor | None,
    bounds: Tensor | None,
    history: Tensor | None,
    positions: Tensor | None,
    slots: Tensor | None,
) -> Tensor:
    """`gathering.look_up`."""
    from engram_cli.runtime.kernels import launch

    hashed = launch.Hash(lookup, multipliers, columns, tuple(orders), filler, eos, salted)
    back = LookBack(
        dead=dead, ages=ages, bounds=bounds, history=history, positions=positions, slots=slots
    )
    return launch.look_up(hashed, ids, tables, scales, back, dtype, kind=kind)


@look_up.register_fake
def _(ids, tables, scales, kind, dtype, lookup, multipliers, columns, *rest):  # type: ignore[no-untyped-def]
    width = columns.shape[1] * tables[0].shape[1]
    return ids.new_empty((len(columns), *ids.shape, width), dtype=dtype)


@torch.library.custom_op("engram::look_up_step", mutates_args=("history",))
def look_up_step(
    ids: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    kind: str,
    dtype: torch.dtype,
    lookup: Tensor,
    multipliers: Tensor,
    columns: Tensor,
    orders: Sequence[int],
    filler: int,
    eos: int,
    salted: bool,
    dead: Tensor | None,
    bounds: Tensor | None,
    history: Tensor,
    positions: Tensor,
    slots: Tensor | None,
) -> Tensor:
    """`gathering.look_up_step`."""
    from engram_cli.runtime.kernels import launch

    hashed = launch.Hash(lookup, multipliers, columns, tuple(orders), filler, eos, salted)
    back = LookBack(dead=dead, bounds=bounds, history=history, positions=positions, slots=slots)
    return launch.look_up(hashed, ids, tables, scales, back, dtype, kind=kind, commit=True)


@look_up_step.register_fake
def _(ids, tables, scales, kind, dtype, lookup, multipliers, columns, *rest):  # type: ignore[no-untyped-def]
    width = columns.shape[1] * tables[0].shape[1]
    return ids.new_empty((len(columns), *ids.shape, width), dtype=dtype)


@torch.library.custom_op("engram::find_rows", mutates_args=())
def find_rows(
    ids: Tensor,
    lookup: Tensor,
    multipliers: Tensor,
    columns: Tensor,
    orders: Sequence[int],
    filler: int,
    eos: int,
    salted: bool,
    dead: Tensor | None,
    ages: Tensor | None,
    bounds: Tensor | None,
    history: Tensor | None,
    positions: Tensor | None,
    slots: Tensor | None,
) -> Tensor:
    """`gathering.find_rows`."""
    from engram_cli.runtime.kernels import launch

    hashed = launch.Hash(lookup, multipliers, columns, tuple(orders), filler, eos, salted)
    back = LookBack(
        dead=dead, ages=ages, bounds=bounds, history=history, positions=positions, slots=slots
    )
    return launch.find_rows(hashed, ids, back)


@find_rows.register_fake
def _(ids, lookup, multipliers, columns, *rest):  # type: ignore[no-untyped-def]
    return ids.new_empty((len(columns), *ids.shape, columns.shape[1]), dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, tables, scales, _, _, *rest = inputs
    ctx.scales = len(scales)
    ctx.tables = [(len(t), t.shape[1], t.dtype, t.requires_grad) for t in tables]
    ctx.constants = rest[3:7]
    ctx.save_for_backward(ids, *rest[:3], *rest[7:])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """The gradient of the tables; the rows are found again instead of being kept."""
    ids, lookup, multipliers, columns, *back = ctx.saved_tensors
    rows = find_rows(ids, lookup, multipliers, columns, *ctx.constants, *back)
    grads: list[Tensor | None] = []
    for (height, dim, dtype, wanted), of, own in zip(ctx.tables, rows, gradient, strict=True):
        own = own.reshape(-1, dim).to(dtype)
        grads.append(
            torch.ops.aten.embedding_dense_backward(own, of.reshape(-1), height, -1, False)
            if wanted
            else None
        )
    return (None, grads, [None] * ctx.scales, *[None] * 15)


look_up.register_autograd(_backward, setup_context=_setup)
