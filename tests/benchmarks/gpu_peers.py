"""The engram kernels of SGLang and vLLM, taken from their published wheels when measuring.

ENGRAM_PEERS names a folder with the two wheels' files `engram_hash.py`, `engram_gather.py` and
`engram_staging.py` (SGLang) and `engram.py` (vLLM), and `versions.json`; nothing of them is kept
here. vLLM's file and the last of SGLang's need the whole engine to be imported, so what is measured
is cut out of them by name.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from engram_cli.runtime.reference import HashTensors

_HEAD = """import torch, triton
import triton.language as tl
_SORTED_IS_CONSTEXPR = tl.constexpr(False)
_GATHER_THREADS = 16
"""


def folder() -> Path | None:
    """Where the peers' files lie, if they are given."""
    given = os.environ.get("ENGRAM_PEERS")
    return Path(given) if given else None


def versions(place: Path) -> dict[str, str]:
    """The versions of the peers' wheels."""
    found: dict[str, str] = json.loads((place / "versions.json").read_text())
    return found


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cut(path: Path, names: set[str], out: Path) -> ModuleType:
    """A module of only these functions, or methods, of a file."""
    source = path.read_text()
    parts = [_HEAD]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
            parts.append(textwrap.dedent(found))
    out.write_text("\n\n".join(parts) + "\n")
    return _import(out)


class SGLang:
    """Hash of all layers and gather of one, as SGLang launches them.

    `values` and `scales` may lie in pinned host memory, which the gather then reads in place;
    `sort`: in the order of rows, as SGLang does by default where the GPU maps host memory itself.
    """

    def __init__(
        self,
        place: Path,
        hashed: HashTensors,
        values: Tensor,
        scales: Tensor,
        *,
        sort: bool = False,
    ) -> None:
        self.sort = sort
        self.hash = _import(place / "engram_hash.py")
        self.gather = _import(place / "engram_gather.py").engram_gather
        self.values, self.scales = values, scales
        heads = hashed.columns.shape[1] // len(hashed.orders)
        device = hashed.columns.device
        self.history = torch.zeros(1 << 15, hashed.max_order - 1, dtype=torch.int32, device=device)
        self.arguments = {
            "token_map": hashed.lookup,
            "multipliers": hashed.multipliers[:, -1].contiguous(),
            "primes": hashed.columns[..., 0].unflatten(1, (-1, heads)).contiguous(),
            "offsets": hashed.columns[..., 2].contiguous(),
            "pad_id": hashed.filler,
        }

    def prefill(self, ids: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """One sequence: its hash, and the gather of the first layer's rows."""
        count, device = len(ids), ids.device
        positions = torch.arange(count, device=device)
        row = torch.zeros(count, dtype=torch.int64, device=device)
        starts = torch.zeros(1, dtype=torch.int64, device=device)

        def hash_ids() -> Tensor:
            found: Tensor = self.hash.engram_hash_ids(
                ids,
                positions,
                mode=2,
                history=self.history,
                row=row,
                starts=starts,
                **self.arguments,
            )[0]
            return found

        return self._both(hash_ids, count)

    def decode(self, ids: Tensor, position: int) -> Callable[[], tuple[Tensor, Tensor]]:
        """A token of each sequence, and its history advanced."""
        count, device = len(ids), ids.device
        positions = torch.full((count,), position, device=device)
        slots = torch.arange(count, device=device)
        places = torch.ones(count, dtype=torch.int64, device=device)

        def hash_ids() -> Tensor:
            found: Tensor = self.hash.engram_hash_ids_and_commit(
                ids,
                positions,
                history=self.history,
                req_slots=slots,
                out_cache_loc=places,
                **self.arguments,
            )
            return found

        return self._both(hash_ids, count)

    def _both(self, hash_ids: Callable[[], Tensor], count: int) -> Callable[[], Any]:
        first = hash_ids()[:, 0].contiguous()  # not timed: the engine copies it each time
        dim = self.values.shape[1]

        def call() -> tuple[Tensor, Tensor]:
            rows = hash_ids()
            out = torch.empty(first.numel(), dim, dtype=torch.bfloat16, device=first.device)
            pointers = self.values.data_ptr(), self.scales.data_ptr()
            self.gather(*pointers, first.view(-1), out, dim, 32, sort_ids=self.sort)
            return rows, out

        return call


class StagedSGLang:
    """SGLang's scheduler-side path, off by default: CPU threads gather every row, a copy follows.

    The row ids are given on the host; that the scheduler computes them there is not timed.
    """

    def __init__(self, place: Path, values: Tensor, scales: Tensor) -> None:
        cut = _cut(place / "engram_staging.py", {"_gather"}, place / "engram_staging_cut.py")
        self._threads_gather = cut._gather
        self.gather = _import(place / "engram_gather.py").engram_gather
        self.pool = ThreadPoolExecutor(16)
        self.values, self.scales = values, scales
        self.stream = torch.cuda.Stream()

    def prefill(self, ids: Tensor) -> Callable[[], Tensor]:
        """The vectors of row ids int64[n] on the host."""
        width = self.values.shape[1]

        def call() -> Tensor:
            parts = [self._threads_gather(self, table, ids) for table in (self.values, self.scales)]
            with torch.cuda.stream(self.stream):
                rows, scales = (part.to("cuda", non_blocking=True) for part in parts)
                copied = torch.cuda.Event()
                copied.record()
            torch.cuda.current_stream().wait_event(copied)
            out = torch.empty(len(ids), width, dtype=torch.bfloat16, device="cuda")
            order = torch.arange(len(ids), dtype=torch.int32, device="cuda")
            pointers = rows.data_ptr(), scales.data_ptr()
            self.gather(*pointers, order, out, width, 32, row_hi=len(ids))
            for part in (rows, scales):
                part.record_stream(torch.cuda.current_stream())
            return out

        return call


class VLLM:
    """Hash of all layers and look-up of one, as vLLM launches them; `sort`: in the rows' order."""

    def __init__(
        self,
        place: Path,
        hashed: HashTensors,
        values: Tensor,
        scales: Tensor,
        *,
        sort: bool = False,
    ) -> None:
        self.sort = sort
        names = {"_hash_ids_kernel", "_engram_lookup_kernel"}
        self.kernels = _cut(place / "engram.py", names, place / "engram_cut.py")
        self.hashed, self.scales = hashed, scales
        self.values = values.view(torch.float8_e4m3fn)
        self.heads = hashed.columns.shape[1] // len(hashed.orders)
        self.multipliers = hashed.multipliers[:, -1].contiguous()
        self.primes = hashed.columns[..., 0].contiguous()
        self.offsets = hashed.columns[..., 2].contiguous()
        device = hashed.columns.device
        self.processors = torch.cuda.get_device_properties(device).multi_processor_count

    def prefill(self, ids: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """One sequence."""
        count, device = len(ids), ids.device
        positions = torch.arange(count, device=device)
        dead = torch.zeros(count, dtype=torch.bool, device=device)
        starts = torch.tensor([0, count], dtype=torch.int32, device=device)
        window = torch.full((1, self.hashed.max_order - 1), -1, dtype=torch.int32, device=device)
        no_dead = torch.zeros_like(window, dtype=torch.bool)
        layers, columns = self.primes.shape
        dim = self.values.shape[1]

        def call() -> tuple[Tensor, Tensor]:
            rows = torch.empty(count, layers, columns, dtype=torch.int32, device=device)
            self.kernels._hash_ids_kernel[((count + 31) // 32, layers)](
                ids,
                self.hashed.lookup,
                dead,
                positions,
                None,
                starts,
                self.multipliers,
                self.primes,
                self.offsets,
                None,
                window,
                no_dead,
                rows,
                count,
                0,
                self.hashed.filler,
                input_stride=1,
                mask_stride=1,
                position_stride=1,
                table_stride=0,
                table_col_stride=0,
                query_stride=1,
                num_query_rows=1,
                num_table_rows=0,
                max_blocks=0,
                cache_block_size=64,
                MAX_NGRAM=self.hashed.max_order,
                num_heads=self.heads,
                BLOCK_T=32,
                BLOCK_H=self.heads,
                dead_id=-1,
                lookback_depth=window.shape[1],
                lookback_row_stride=window.stride(0),
                lookback_col_stride=1,
                lookback_mask_row_stride=window.stride(0),
                lookback_mask_col_stride=1,
                num_warps=4,
            )
            own = rows[:, 0]
            out = torch.empty(count * columns, dim, dtype=torch.bfloat16, device=device)
            grid = min((count * columns + 15) // 16, self.processors)
            order = own
            if self.sort:
                own, order = own.flatten().sort()
                order = order.int()
            self.kernels._engram_lookup_kernel[(grid,)](
                self.values,
                self.scales,
                own,
                order,
                out,
                0,
                len(self.values),
                count * columns,
                *rows[:, 0].stride(),
                HEAD_START=0,
                LOCAL_HEADS=columns,
                TOTAL_HEADS=columns,
                DIM=dim,
                QUANT_BLOCK=32,
                BLOCK_R=16,
                GRID=grid,
                SORTED=self.sort,
                PACKED=False,
                OUT_STRIDE=dim,
                PEER_ROWS=0,
            )
            return rows, out

        return call
