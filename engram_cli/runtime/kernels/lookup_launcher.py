"""Launches the look-up kernel: chooses the block sizes and prepares the arguments."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache, lru_cache
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engram_cli.runtime.kernels.lookup import lookup_kernel
from engram_cli.runtime.kernels.tiles import Repeated, parts_of, power_of_two
from engram_cli.runtime.lookup_reference import LookBack
from engram_cli.runtime.reference import HashTensors

LOOK_UPS = Repeated(lookup_kernel)
_LOCAL = (None,) * 6 + (0,)


class Hash(NamedTuple):
    """Holds the hash as the operators pass it; `eos` is -1 where there is none."""

    lookup: Tensor
    multipliers: Tensor
    columns: Tensor
    orders: tuple[int, ...]
    filler: int
    eos: int
    salted: bool


class Shards(NamedTuple):
    """Says where the rows of all layers are that are distributed over several GPUs.

    `addresses`: of the rows of each layer at each rank, layer by layer, then of the scales likewise
    where the owner of a row has them. `hot` rows and scales [H, ...] of each layer are on this GPU,
    too: those of the sets `words` and `ranks` (`HotSet`). `counted` int64[COUNTERS, 8]: pairs of
    rows read and rows read from this GPU, summed over the pairs. `rank`: of this GPU.
    """

    world: int
    rank: int
    addresses: tuple[int, ...]
    scales_here: bool
    hot: tuple[Tensor, ...] | None = None
    hot_scales: tuple[Tensor, ...] | None = None
    words: tuple[Tensor, ...] | None = None
    ranks: tuple[Tensor, ...] | None = None
    counted: Tensor | None = None


class Plan(NamedTuple):
    """Says how many tokens and columns a program handles; `once`: rows are not kept in L1.

    `vector`: the values that a thread loads at once, chosen when None.
    """

    tokens: int
    columns: int
    once: bool = False
    warps: int = 1
    vector: int | None = None


@lru_cache(maxsize=1024)
def choose_plan(rows: int, columns: int, width: int) -> Plan:
    """Return the plan for `rows` rows of `width` values in a block, `columns` a token and layer.

    Measured on an H200 (docs/benchmarks.md). Few rows: 8 values a thread, so that many programs
    hide the latency. Many rows: 64, which fill the memory's queues. In between: 32.
    """
    each = values_a_thread(rows * width)
    lanes = max(1, 32 * each // width)
    sizes = [2**i for i in range(lanes.bit_length())]
    own = min(sizes, key=lambda size: (parts_of(columns, size) * size, -size))
    tokens = lanes // own if each == 64 else 1
    return Plan(tokens, own, each == 64 and (rows <= 2**16 or width < 128))


def look_up(
    hashed: Hash,
    ids: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    back: LookBack,
    dtype: torch.dtype,
    *,
    kind: str,
    commit: bool = False,
    plan: Plan | None = None,
    bits: bool | None = None,
    shards: Shards | None = None,
    rows: Tensor | None = None,
    known: Hashable = None,
) -> Tensor:
    """Return [L, *ids.shape, C x dim] in `dtype`, of tables [rows, dim] of one kind.

    `plan` and `bits` (decode e4m3 by integer operations) are chosen when None. With `shards`,
    tables and scales are those that this GPU holds. The row numbers are written to `rows` int64
    [L, *ids.shape, C], if given. `known`: the key of this launch in `LOOK_UPS`.
    """
    layers, columns = hashed.columns.shape[:2]
    first = tables[0]
    dim, itemsize = first.shape[1], first.element_size()
    out = torch.empty((layers, *ids.shape, columns * dim), dtype=dtype, device=ids.device)
    block = min(power_of_two(dim), 1024)
    fp8 = kind in ("grouped", "scaled")
    if bits is None:
        bits = not converts_fp8(ids.device)
    if fp8:
        tables = [t.view(torch.uint8 if bits else torch.float8_e4m3fn) for t in tables]
    if kind == "grouped":
        scales = [s.view(torch.uint8) for s in scales]
    constants = {
        "DIM": dim,
        "TABLE_STRIDE": first.stride(0),
        "SCALE_STRIDE": scales[0].stride(0) if kind in ("grouped", "per-row") else 0,
        "KIND": kind,
        "BITS": fp8 and bits,
        "VECTOR": min(block, 16 // max(itemsize, dtype.itemsize)),
        "BLOCK_D": block,
        "CHUNKS": parts_of(dim, block),
    }
    if plan is None:
        plan = choose_plan(ids.numel() * layers * columns, columns, block)
    if plan.vector is not None:
        constants["VECTOR"] = min(block, plan.vector)
    scales = scales or tables
    if shards is not None:
        row_bytes = first.stride(0) * itemsize
        constants |= {
            "SHARDS": shards.world,
            "SCALES_HERE": shards.scales_here,
            "ITEM": itemsize,
            "SCALE_ITEM": scales[0].element_size(),
            "ALIGNED": gcd(16, row_bytes, *shards.addresses[: layers * shards.world]),
        }
    _launch(hashed, ids, out, tables, scales, back, commit, plan, constants, shards, rows, known)
    return out


def find_rows(hashed: Hash, ids: Tensor, back: LookBack, known: Hashable = None) -> Tensor:
    """Return the row numbers alone, int64[L, *ids.shape, C]; `known` as in `look_up`."""
    layers, columns = hashed.columns.shape[:2]
    out = torch.empty((layers, *ids.shape, columns), dtype=torch.int64, device=ids.device)
    nothing = (ids,) * layers
    plan = choose_plan(out.numel(), columns, 32)
    constants = {"DIM": 1, "TABLE_STRIDE": 1, "SCALE_STRIDE": 1, "KIND": "rows", "BITS": False}
    constants |= {"VECTOR": 1, "BLOCK_D": 1, "CHUNKS": 1}
    _launch(hashed, ids, out, nothing, nothing, back, False, plan, constants, known=known)
    return out


def arguments(
    hashed: Hash | HashTensors,
    ids: Tensor,
    out: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    back: LookBack,
    rows: Tensor | None,
    placed: tuple[Any, ...] = _LOCAL,
) -> tuple[Any, ...]:
    """Return the first arguments of the kernel, to `found_rows`."""
    limits = (back.dead, back.ages, back.bounds, back.history, back.slots, back.positions)
    return (
        *(out, ids, hashed.lookup, hashed.multipliers, hashed.columns),
        *(tuple(tables), tuple(scales), *placed),
        *(None if limit is None else limit.contiguous() for limit in limits),
        rows,
    )


def _launch(
    hashed: Hash,
    ids: Tensor,
    out: Tensor,
    tables: Sequence[Tensor],
    scales: Sequence[Tensor],
    back: LookBack,
    commit: bool,
    plan: Plan,
    constants: dict[str, Any],
    shards: Shards | None = None,
    rows: Tensor | None = None,
    known: Hashable = None,
) -> None:
    count, bounds = ids.numel(), back.bounds
    layers, columns = hashed.columns.shape[:2]
    sequences = len(ids) if bounds is None else len(bounds) - 1
    placed = _LOCAL if shards is None else _placed(shards)
    LOOK_UPS.launch(
        known,
        (parts_of(columns, plan.columns) * parts_of(count, plan.tokens), layers),
        arguments(hashed, ids, out, tables, scales, back, rows, placed),
        *(count, ids.shape[1] if bounds is None else 0, sequences, sequences.bit_length()),
        *(ids.stride(0) if bounds is None else 0, ids.stride(-1), len(hashed.lookup)),
        *(hashed.filler, hashed.eos if hashed.eos >= 0 else None),
        1 if back.history is None else back.history.shape[1],
        N=hashed.orders[-1],
        COLUMNS=columns,
        HEADS=columns // len(hashed.orders),
        LAYERS=layers,
        SALTED=hashed.salted,
        COMMIT=commit,
        BLOCK_T=plan.tokens,
        BLOCK_C=plan.columns,
        ONCE=plan.once,
        num_warps=plan.warps,
        **(_UNSHARDED | constants),
    )


_UNSHARDED = {"SHARDS": 0, "SCALES_HERE": True, "ITEM": 1, "SCALE_ITEM": 1, "ALIGNED": 1}


def _placed(shards: Shards) -> tuple[Any, ...]:
    """Return the arguments of the kernel between `scales` and `dead`."""
    return (
        *(shards.addresses, shards.hot, shards.hot_scales, shards.words, shards.ranks),
        *(shards.counted, shards.rank),
    )


def values_a_thread(values: int) -> int:
    """Return how many of the `values` of a launch each thread handles (`choose_plan`)."""
    return 8 if values <= 2**17 else 32 if values <= 2**21 else 64


@cache
def converts_fp8(device: torch.device) -> bool:
    """Whether Triton can convert e4m3 there: from compute capability 8.9 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
