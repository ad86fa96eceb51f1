"""Decode steps on a CPU: the few tokens that continue a sequence, by the loops of their own.

Between two steps a model's weights drive everything else out of the caches, so that each Python
function and torch operator of a step costs several times what it does in a loop of its own. Here a
step is one loop for all layers and one more a layer. The addresses of weights are found once, and
a step only asks whether they still hold (`Watch`). What the loops do not take runs as ever.
"""

from __future__ import annotations

from functools import cache
from operator import attrgetter, is_, methodcaller
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.runtime import cpu_ops
from engram_cli.runtime.gate_reference import GateWeights
from engram_cli.runtime.modules.base import MemoryModule, Rows, StoredRows, is_bare, is_plain
from engram_cli.runtime.reference import HashTensors, no_token
from engram_cli.runtime.state import DecodeState
from engram_cli.runtime.step import Step

# Bytes of a layer's projections that a loop of one thread reads; torch reads more of them in all
# its threads.
_LOOP_BYTES = 2**24
_FLOATS = (torch.float32, torch.bfloat16)


@cache
def _kernels() -> Any:
    from engram_cli.runtime import cpu_decode_kernels

    return cpu_decode_kernels


class Watch:
    """Tells whether modules are as they were: their parts, hooks, and where their numbers are.

    All loops over them are C's: a step asks each time.
    """

    def __init__(self, root: nn.Module) -> None:
        owners = list(root.modules())
        held: list[dict[str, Any]] = [d for m in owners for d in (m._modules, m._parameters)]
        parts = [(own, name, part) for own in held for name, part in own.items()]
        self._parts = tuple(zip(*parts, strict=True))
        self._tensors = [part for _, _, part in parts if type(part) is nn.Parameter]
        self._hooks = [h for m in owners for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._attributes = [m.__dict__ for m in owners]
        self._found = self._look()

    def _look(self) -> tuple[list[Any], ...]:
        return (
            list(map(Tensor.data_ptr, self._tensors)),
            list(map(_dtype, self._tensors)),
            list(map(len, self._hooks)),
            list(map(_has_forward, self._attributes)),
        )

    def holds(self) -> bool:
        """Return whether nothing has changed since."""
        owners, names, parts = self._parts
        return all(map(is_, map(dict.get, owners, names), parts)) and self._look() == self._found


_dtype = attrgetter("dtype")
_has_forward = methodcaller("__contains__", "forward")


class LayerPlan:
    """What `add_at` takes of a layer's module; `reads` says that `begin_at` projects for it."""

    def __init__(self, place: int, module: MemoryModule, weights: GateWeights) -> None:
        self.place, self.module, self.reach = place, module, weights.reach
        self.dtype = weights.query.dtype
        self.half = self.dtype == torch.bfloat16
        streams, width = weights.query.shape
        self.outputs = streams * width + width
        self.tails = [(streams * width,), *([(streams, width)] if streams > 1 else [])]
        taps = 0 if weights.taps is None else weights.taps.shape[-1]
        tensors = (weights.query, weights.key, weights.norm, weights.taps)
        addresses = [0 if x is None else x.data_ptr() for x in tensors]
        self.weights = np.array([streams, width, taps, weights.dilation, *addresses], np.int64)
        rates = (weights.eps, weights.norm_eps, float(weights.centred))
        self.rates = np.array(rates, dtype=np.float32)
        self.table, self.linears = 0, _linears(module, self.dtype)
        rows = module.multi_head_embedding.embedding
        assert isinstance(rows, (Rows, StoredRows))
        self.rows: Tensor = rows.weight
        if self.linears is not None and type(rows) is Rows and _is_read(self.rows, _FLOATS):
            self.table = self.rows.data_ptr()
        self.reads = self.table != 0


def _is_read(tensor: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Return whether a loop can read a tensor, or needs not."""
    if tensor is None:
        return True
    return tensor.device.type == "cpu" and tensor.dtype in dtypes and tensor.is_contiguous()


def _linears(module: MemoryModule, dtype: torch.dtype) -> list[nn.Linear] | None:
    """Return a module's projections where a loop can compute them."""
    found = module.linears()
    if type(module).project is not MemoryModule.project:
        return None
    if not all(isinstance(linear, nn.Linear) and is_plain(linear) for linear in found):
        return None
    plain = cast("list[nn.Linear]", found)
    if not all(_is_read(x, (dtype,)) for linear in plain for x in (linear.weight, linear.bias)):
        return None
    return plain if sum(linear.weight.nbytes for linear in plain) <= _LOOP_BYTES else None


class DecodePlan:
    """Where the loops find a memory's hash and modules. `fits`: whether they can run them."""

    def __init__(self, hashed: HashTensors, modules: nn.ModuleDict) -> None:
        self.hashed, self.watch = hashed, Watch(modules)
        self.layers: dict[int, LayerPlan] = {}
        self.fits = not hashed.summed and hashed.lookup.device.type == "cpu"
        for place, (layer, module) in enumerate(modules.items()):
            own = cast(MemoryModule, module)
            weights = _fixed_weights(own) if self.fits and _is_common(own) else None
            if weights is None:
                self.fits = False
                return
            self.layers[int(layer)] = LayerPlan(place, own, weights)
        self._fill()

    def _fill(self) -> None:
        """Note where the hash, the tables and the projections are, for `begin_at`."""
        hashed, plans = self.hashed, list(self.layers.values())
        layers, columns = hashed.columns.shape[:2]
        self.columns, self.older = columns, hashed.max_order - 1
        of_hash = (hashed.lookup, hashed.multipliers, hashed.columns)
        self._of_hash = [tensor.contiguous() for tensor in of_hash]  # kept: they may be copies
        eos = cpu_ops.NO_EOS if hashed.eos is None else hashed.eos
        numbers = [len(hashed.lookup), layers, hashed.max_order, columns, hashed.filler, eos]
        numbers += [tensor.data_ptr() for tensor in self._of_hash]
        self.hash_numbers = np.array(numbers, dtype=np.int64)
        self.orders = np.array(hashed.orders, dtype=np.int64)
        tables = [plan.rows for plan in plans]
        self.table_half = tables[0].dtype == torch.bfloat16
        self.dim = tables[0].shape[1]
        self.half, self.outputs = plans[0].half, plans[0].outputs
        like = [(plan.half, plan.outputs) for plan in plans]
        shapes = [(table.dtype, table.shape[1]) for table in tables]
        self.fits = len(set(like)) == 1 and len(hashed.heights) == len(plans)
        lines: list[list[int]] = []
        for plan, table, height in zip(plans, tables, hashed.heights, strict=True):
            plan.reads = plan.reads and len(table) >= height and len(set(shapes)) == 1
            first = 0
            for linear in (plan.linears or ()) if plan.reads else ():
                bias = 0 if linear.bias is None else linear.bias.data_ptr()
                many = len(linear.weight)
                lines.append([plan.place, linear.weight.data_ptr(), bias, many, first])
                first += many
        self.tables = np.array([plan.table for plan in plans], dtype=np.int64)
        self.linears: NDArray[np.int64] = np.array(lines, dtype=np.int64).reshape(-1, 5)

    def holds(self, hashed: HashTensors) -> bool:
        """Return whether the plan is still that of the modules."""
        return hashed is self.hashed and self.watch.holds()


def _is_common(module: MemoryModule) -> bool:
    """Return whether a module computes what `add_at` does, of rows in this process's memory."""
    embedding = module.multi_head_embedding
    if type(module).forward is not MemoryModule.forward or not is_bare(module):
        return False
    return is_bare(embedding) and type(embedding.embedding) in (Rows, StoredRows)


def _fixed_weights(module: MemoryModule) -> GateWeights | None:
    """Return a module's weights where they are parameters that loops can read, and no copies."""
    weights = module.gate_weights()
    dtype = weights.query.dtype
    if dtype not in _FLOATS:
        return None
    own = {parameter.data_ptr() for parameter in module.parameters()}
    for tensor in (weights.query, weights.key, weights.norm, weights.taps):
        if tensor is not None and not (_is_read(tensor, (dtype,)) and tensor.data_ptr() in own):
            return None
    return weights


class DecodeStep:
    """The new positions of a call, [B, T], as the loops compute them.

    They are written behind what `state` knows, and become known by `commit`. Raises TokenIdError.
    """

    def __init__(
        self, plan: DecodePlan, state: DecodeState, cache: Any, containers: Any, ids: Tensor
    ) -> None:
        self.plan, self.state, self.cache, self.containers = plan, state, cache, containers
        ids = ids.long().contiguous()
        self.batch, self.count = batch, count = ids.shape
        self.many = many = batch * count
        self.ran: dict[int, tuple[Tensor, int]] = {}
        layers, older = len(plan.layers), batch * plan.older
        self._first = first = (layers * many * plan.outputs + 1) // 2
        self._memory = torch.empty(first + older + layers * many * plan.columns, dtype=torch.int64)
        self._address = self._memory.data_ptr()
        self.room = room, known = state.tokens.make_room(count)
        wrong = _kernels().begin_at(
            *(plan.orders, plan.hash_numbers, plan.tables, plan.linears),
            *(plan.half, plan.table_half, plan.dim, batch, count, known, room.shape[1]),
            *(ids.data_ptr(), room.data_ptr(), self._address + 8 * first, self._address),
        )
        if wrong >= 0:
            raise no_token(plan.hashed)

    def add(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Return `hidden` [B, T, d] with a layer's memory added, None where no loop takes it."""
        plan, batch, count = self.plan.layers[layer], self.batch, self.count
        if type(hidden) is not Tensor or hidden.dtype is not plan.dtype or not hidden.is_cpu:
            return None
        if hidden.shape not in [(batch, count, *tail) for tail in plan.tails]:
            return None
        line = known = address = 0
        if plan.reach:
            self.state.check_not_skipped(layer)
            held = room, known = self.state.conv[layer].make_room(count)
            if room.dtype is not plan.dtype:
                return None
            line, address = room.shape[1], room.data_ptr()
        else:
            held = hidden, 0
        projected, own = self._address + 4 * plan.place * self.many * plan.outputs, None
        if not plan.reads:
            own = plan.module.project(plan.module.vectors(self.rows()[plan.place]))
            own = own.float().contiguous()
            projected = own.data_ptr()
        hidden = hidden.contiguous()
        out = torch.empty_like(hidden)
        _kernels().add_at(
            *(plan.weights, plan.rates, plan.half, batch, count, known, line),
            *(hidden.data_ptr(), projected, address, out.data_ptr()),
        )
        self.ran[layer] = held
        return out

    def rows(self) -> Tensor:
        """Return the row numbers int64[L, B, T, C]."""
        numbers = self._memory[self._first + self.batch * self.plan.older :]
        return numbers.view(-1, self.batch, self.count, self.plan.columns)

    def as_step(self) -> Step:
        """Return the step as plain tensors, for layers that no loop takes."""
        begin = self._first
        older = self._memory[begin : begin + self.batch * self.plan.older]
        pairs = self._new(*self.room)
        return Step(
            tokens=pairs[..., 0],
            seen=pairs[..., 1],
            older=older.view(self.batch, self.plan.older),
            rows=self.rows(),
            vectors=None,
            keep=None,
            age=None,
            state=self.state,
            cache=self.cache,
            containers=self.containers,
            trains=False,
            done=set(self.ran),
            conv={i: self._new(*held) for i, held in self.ran.items() if self.plan.layers[i].reach},
        )

    def _new(self, room: Tensor, known: int) -> Tensor:
        return room[:, known : known + self.count].clone()

    def commit(self) -> None:
        """Remember the new positions."""
        state = self.state
        kept = state.tokens.has_room(self.room[0])
        for layer in state.conv:
            held = self.ran.get(layer)
            kept = kept and (held is None or state.conv[layer].has_room(held[0]))
        if kept:
            state.advance(self.count, self.ran)
        else:  # something else has used the state meanwhile
            step = self.as_step()
            state.extend(step.tokens, step.seen, step.conv)
