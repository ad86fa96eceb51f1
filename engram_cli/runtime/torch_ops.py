"""The look-up as torch operators, so that torch.compile and CUDA graphs see one op each.

`engram::look_up`, `engram::find_rows`, `engram::look_up_step` and `engram::look_up_shards` run the
kernel of `kernels.lookup`. Arguments are flat because operators take tensors, integers and lists
only. `call` runs them, and skips torch's dispatcher where only autograd needs to see the call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engram_cli.runtime import torch_ops_rows
from engram_cli.runtime.graph_capture import is_plain_call
from engram_cli.runtime.lookup_reference import NO_LIMITS, LookBack
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.sharding import registry
from engram_cli.runtime.tables import Table

if TYPE_CHECKING:
    from engram_cli.runtime.kernels import lookup_launcher

_TABLES = "Tensor[] tables, Tensor[] scales, str kind, ScalarType dtype"
_HASH = (
    "Tensor lookup, Tensor multipliers, Tensor columns, SymInt[] orders, SymInt filler, "
    "SymInt eos, bool salted"
)
_LIMITS = (
    "Tensor? dead, Tensor? ages, Tensor? bounds, Tensor? history, Tensor? positions, Tensor? slots"
)
_WRITTEN = _LIMITS.replace("Tensor? history", "Tensor(a!) history")
_OF_HASH = 7  # arguments of `hash_arguments`


def hash_arguments(tensors: HashTensors) -> tuple[Any, ...]:
    """Return the hash as the operators take it."""
    eos = -1 if tensors.eos is None else tensors.eos
    constants = (list(tensors.orders), tensors.filler, eos, tensors.salted)
    return (tensors.lookup, tensors.multipliers, tensors.columns, *constants)


def table_arguments(tables: Sequence[Table]) -> tuple[list[Tensor], list[Tensor], str]:
    """Return the rows, the scales and the kind of tables as the operators take them."""
    scales = [table.scales for table in tables if table.scales is not None]
    return [table.values for table in tables], scales, tables[0].kind


def limit_arguments(back: LookBack) -> tuple[Tensor | None, ...]:
    """Return the limits of the n-grams as the operators take them."""
    return (back.dead, back.ages, back.bounds, back.history, back.positions, back.slots)


def _hash_and_limits(arguments: Sequence[Any]) -> tuple[lookup_launcher.Hash, LookBack]:
    """Rebuild hash and limits from `hash_arguments` followed by `limit_arguments`."""
    from engram_cli.runtime.kernels import lookup_launcher

    lookup, multipliers, columns, orders, *constants = arguments[:_OF_HASH]
    dead, ages, bounds, history, positions, slots = arguments[_OF_HASH:]
    back = LookBack(
        dead=dead, ages=ages, bounds=bounds, history=history, positions=positions, slots=slots
    )
    return lookup_launcher.Hash(lookup, multipliers, columns, tuple(orders), *constants), back


def _look_up(
    ids: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    kind: str,
    dtype: torch.dtype,
    *rest: Any,
) -> Tensor:
    """`lookup_reference.look_up`; `gradients` are those of `Table`."""
    from engram_cli.runtime.kernels import lookup_launcher

    hashed, back = _hash_and_limits(rest[:-1])
    return lookup_launcher.look_up(hashed, ids, tables, scales, back, dtype, kind=kind)


def _look_up_step(
    ids: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    kind: str,
    dtype: torch.dtype,
    *rest: Any,
) -> Tensor:
    """`lookup_reference.look_up_step`."""
    from engram_cli.runtime.kernels import lookup_launcher

    hashed, back = _hash_and_limits(rest)
    return lookup_launcher.look_up(hashed, ids, tables, scales, back, dtype, kind=kind, commit=True)


look_up = torch.library.custom_op(
    "engram::look_up",
    _look_up,
    mutates_args=(),
    schema=f"(Tensor ids, {_TABLES}, {_HASH}, {_LIMITS}, str gradients) -> Tensor",
)
look_up_step = torch.library.custom_op(
    "engram::look_up_step",
    _look_up_step,
    mutates_args=("history",),
    schema=f"(Tensor ids, {_TABLES}, {_HASH}, {_WRITTEN}) -> Tensor",
)


@look_up.register_fake
@look_up_step.register_fake
def _(ids, tables, scales, kind, dtype, lookup, multipliers, columns, *rest):  # type: ignore[no-untyped-def]
    width = columns.shape[1] * tables[0].shape[1]
    return ids.new_empty((len(columns), *ids.shape, width), dtype=dtype)


def _find_rows(ids: Tensor, *rest: Any) -> Tensor:
    """`lookup_reference.find_rows`."""
    from engram_cli.runtime.kernels import lookup_launcher

    hashed, back = _hash_and_limits(rest)
    return lookup_launcher.find_rows(hashed, ids, back)


def _look_up_shards(ids: Tensor, shards: int, width: int, dtype: torch.dtype, *rest: Any) -> Tensor:
    """`ShardedTables.look_up`, of the tables with the number `shards`."""
    hashed, back = _hash_and_limits(rest)
    return registry.find(shards).look_up(hashed, ids, back)


look_up_shards = torch.library.custom_op(
    "engram::look_up_shards",
    _look_up_shards,
    mutates_args=(),
    schema=f"(Tensor ids, int shards, int width, ScalarType dtype, {_HASH}, {_LIMITS}) -> Tensor",
)


@look_up_shards.register_fake
def _(ids, shards, width, dtype, lookup, multipliers, columns, *rest):  # type: ignore[no-untyped-def]
    shape = (len(columns), *ids.shape, columns.shape[1] * width)
    return ids.new_empty(shape, dtype=dtype)


find_rows = torch.library.custom_op(
    "engram::find_rows",
    _find_rows,
    mutates_args=(),
    schema=f"(Tensor ids, {_HASH}, {_LIMITS}) -> Tensor",
)


@find_rows.register_fake
def _(ids, lookup, multipliers, columns, *rest):  # type: ignore[no-untyped-def]
    return ids.new_empty((len(columns), *ids.shape, columns.shape[1]), dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    ids, tables, scales, _, _, *rest, gradients = inputs
    ctx.scales, ctx.gradients = len(scales), gradients
    ctx.tables = [(t.shape, t.dtype, t.requires_grad) for t in tables]
    ctx.constants = rest[3:_OF_HASH]
    ctx.save_for_backward(ids, *rest[:3], *rest[_OF_HASH:])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """Compute the gradients of the tables; rows are computed again, not saved."""
    ids, lookup, multipliers, columns, *limits = ctx.saved_tensors
    rows = find_rows(ids, lookup, multipliers, columns, *ctx.constants, *limits)
    return (None, _table_gradients(ctx, rows, gradient), [None] * ctx.scales, *[None] * 16)


def _table_gradients(ctx: Any, rows: Tensor, gradient: Tensor) -> list[Tensor | None]:
    one = len(ctx.tables) == 1
    parts = ((rows, gradient),) if one else zip(rows.unbind(), gradient.unbind(), strict=True)
    return [
        torch_ops_rows.gradient(own, of, shape, dtype, ctx.gradients) if wanted else None
        for (shape, dtype, wanted), (of, own) in zip(ctx.tables, parts, strict=True)
    ]


look_up.register_autograd(_backward, setup_context=_setup)


class _LookUp(torch.autograd.Function):
    """`look_up` as an autograd function, without torch's dispatcher.

    `run` writes the row numbers int64 [L, ..., C], too: 8 bytes a row, for a launch less in the
    backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        gradients: str,
        *values: Tensor,
    ) -> Tensor:
        rows = torch.empty(shape, dtype=torch.int64, device=values[0].device)
        ctx.gradients = gradients
        ctx.tables = [(t.shape, t.dtype, t.requires_grad) for t in values]
        ctx.save_for_backward(rows)
        return run(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (rows,) = ctx.saved_tensors
        return (None, None, None, *_table_gradients(ctx, rows, gradient))


def again(
    operator: Any,
    ids: Tensor,
    tensors: HashTensors,
    back: LookBack,
    tables: Sequence[Table] = (),
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Return what `call` does where it launched such a call before, None elsewhere.

    Nothing is checked or chosen again: the key of the launch has all that this depends on.
    """
    values = [table.values for table in tables]
    if not is_plain_call(ids, *values):
        return None
    from engram_cli.runtime.kernels import lookup_launcher

    wanted = dtype or (tables[0].default_dtype if tables else torch.int64)
    learns = _learns(operator, values)
    launch = lookup_launcher.LOOK_UPS.find(
        _key(operator, ids, tensors, back, tables, wanted, learns)
    )
    if launch is None:
        return None
    layers, columns = tensors.columns.shape[:2]
    shape = (layers, *ids.shape, columns * values[0].shape[1] if tables else columns)
    given = tuple(values) if tables else (ids,) * layers
    scales = tuple([table.scales for table in tables if table.scales is not None]) or given

    def run(rows: Tensor | None) -> Tensor:
        out = torch.empty(shape, dtype=wanted, device=ids.device)
        launch(*lookup_launcher.arguments(tensors, ids, out, given, scales, back, rows))
        return out

    return _differentiable(run, (*shape[:-1], columns), tables, values) if learns else run(None)


def call(
    operator: Any,
    ids: Tensor,
    tensors: HashTensors,
    back: LookBack,
    tables: Sequence[Table] = (),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Run `operator`: `look_up`, `look_up_step`, or `find_rows`, which takes no tables."""
    values = [table.values for table in tables]
    if is_plain_call(ids, *values):
        learns = _learns(operator, values)
        key = _key(operator, ids, tensors, back, tables, dtype or torch.int64, learns)

        def run(rows: Tensor | None) -> Tensor:
            return _run(operator, ids, tensors, back, tables, dtype, rows, key)

        shape = (len(tensors.columns), *ids.shape, tensors.columns.shape[1])
        return _differentiable(run, shape, tables, values) if learns else run(None)
    rest = (*hash_arguments(tensors), *limit_arguments(back))
    if operator is not find_rows:
        rest = (*table_arguments(tables), dtype, *rest)
    if operator is look_up:
        rest = (*rest, tables[0].gradients)
    found: Tensor = operator(ids, *rest)
    return found


def _learns(operator: Any, values: Sequence[Tensor]) -> bool:
    """Return whether the rows of a call get a gradient."""
    return operator is look_up and torch.is_grad_enabled() and any(v.requires_grad for v in values)


def _key(
    operator: Any,
    ids: Tensor,
    tensors: HashTensors,
    back: LookBack,
    tables: Sequence[Table],
    dtype: torch.dtype,
    learns: bool,
) -> Hashable:
    """Return all that a call's checks and its launch depend on; the hash by its addresses."""
    lookup, columns = tensors.lookup, tensors.columns
    return (
        *(operator, dtype, learns, *_form(ids)),
        *(lookup.data_ptr(), lookup.shape, tensors.multipliers.data_ptr()),
        *(columns.data_ptr(), columns.shape, tensors.orders, tensors.filler, tensors.eos),
        *(tensors.salted, tensors.heights),
        *[(t.kind, t.dim, t.gradients, *_form(t.values)) for t in tables],
        *[_form(t.scales) for t in tables if t.scales is not None],
        None
        if back is NO_LIMITS
        else tuple([x if x is None else _form(x) for x in limit_arguments(back)]),
    )


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return (
        *(tensor.device, tensor.data_ptr() % 16),
        *(tensor.dtype, tensor.shape, tensor.stride()),
    )


def _differentiable(
    run: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    tables: Sequence[Table],
    values: Sequence[Tensor],
) -> Tensor:
    found: Tensor = _LookUp.apply(run, shape, tables[0].gradients, *values)  # type: ignore[no-untyped-call]
    return found


def call_shards(
    ids: Tensor, tensors: HashTensors, back: LookBack, tables: registry.DistributedTables
) -> Tensor:
    """Run `look_up_shards`."""
    rest = (*hash_arguments(tensors), *limit_arguments(back))
    run = _look_up_shards if is_plain_call(ids) else look_up_shards
    found: Tensor = run(ids, tables.number, tables.width, tables.dtype, *rest)
    return found


def _run(
    operator: Any,
    ids: Tensor,
    tensors: HashTensors,
    back: LookBack,
    tables: Sequence[Table],
    dtype: torch.dtype | None,
    rows: Tensor | None,
    key: Hashable,
) -> Tensor:
    """Launch the kernel of `operator` directly, from arguments that are not flattened."""
    from engram_cli.runtime.kernels import lookup_launcher

    eos = -1 if tensors.eos is None else tensors.eos
    sizes = (tensors.orders, tensors.filler, eos, tensors.salted)
    hashed = lookup_launcher.Hash(tensors.lookup, tensors.multipliers, tensors.columns, *sizes)
    if operator is find_rows:
        return lookup_launcher.find_rows(hashed, ids, back, key)
    assert dtype is not None
    values, scales, kind = table_arguments(tables)
    commit = operator is look_up_step
    return lookup_launcher.look_up(
        hashed, ids, values, scales, back, dtype, kind=kind, commit=commit, rows=rows, known=key
    )
