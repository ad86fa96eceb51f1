"""What runs on a GPU, for two versions in turn: look-up, gate, tiers, an attached model.

    python tests/benchmarks/versions.py OLD NEW RESULT.json .../tests/benchmarks/gpu_versions.py

Inputs come from the test helpers of the tree that is measured. "a graph" is the device time of one
call inside a CUDA graph of many; "called" is the time of one call among 40 in a row, launches
included. DeepSeek-V4.1's columns with small tables, which does not change what is launched.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_world as world
import torch
from lookup_cases import bare_vocab
from quantised_bundles import quantised_bundle
from runtime.kernels.gate_cases import GateCase, make_call
from tier_cases import a_store, random_records, tier_spec
from tiny_models import llama, wake

from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime import attach, ops
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.tables import Table

DEVICE = torch.device(os.environ.get("ENGRAM_DEVICE", "cuda"))
SMALL = DEVICE.type == "cpu"  # to try the file without a GPU
ROWS_PER_HEAD = 1000 if SMALL else 100_000
VOCAB = 129_280
CALLS = 2 if SMALL else 40


def cases() -> Iterator[Any]:
    """Every case, one after the other; what a case needs is freed after it."""
    yield from look_ups()
    yield from tiers()
    yield from gates()
    yield from attached()


def a_case(name: str, **contestants: Callable[[], float]) -> SimpleNamespace:
    """A case whose contestants time themselves, in seconds."""
    return SimpleNamespace(name=name, contestants=contestants, before=None)


def called(call: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of one call, of several in a row, from the host's clock."""

    def run() -> float:
        call()
        _wait()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        _wait()
        return (time.perf_counter() - begin) / CALLS

    return run


def graphed(calls: list[Callable[[], Any]]) -> Callable[[], float]:
    """Seconds of one call on the device, in a graph of many."""
    if SMALL:
        return called(calls[0])
    return lambda: world.microseconds(calls)[0] / 1e6


def look_ups() -> Iterator[SimpleNamespace]:
    """Token ids to vectors in HBM."""
    vocab = bare_vocab(VOCAB, 99_000)
    layout = hash_layout("deepseek-v4.1", vocab, pad_id=5, rows_per_head=ROWS_PER_HEAD)
    layer = layout.layer_ids[0]
    hashed = hash_tensors(layout, (layer,), device=DEVICE)
    rows = layout.layer(layer).rows
    if SMALL:
        stored = torch.zeros(rows * 264 // 8 * 8 + 8, dtype=torch.uint8)
    else:
        stored = world.random_bytes(rows * 264 // 8 * 8 + 8, DEVICE)
    tables: list[tuple[str, Table]] = [
        ("fp8_e8m0", world.fp8_table(rows, 256, stored)),
        ("bfloat16", Table(values=torch.randn(rows, 64, device=DEVICE, dtype=torch.bfloat16))),
    ]
    for dtype, table in tables:
        for count in (1, 64, 4096, 16384)[: 2 if SMALL else None]:
            sets = [torch.randint(0, VOCAB, (1, count), device=DEVICE) for _ in range(12)]
            sets = [ids.to(torch.int32) for ids in sets]
            calls = [lambda ids=ids, t=table: ops.look_up(hashed, ids, [t]) for ids in sets]
            yield a_case(
                f"look-up, {dtype}, {count:,} tokens", called=called(calls[0]), graph=graphed(calls)
            )


def tiers() -> Iterator[SimpleNamespace]:
    """Rows in pinned host memory, a tenth of them in HBM."""
    spec = tier_spec("fp8_e8m0", 256)
    height = 1000 if SMALL else 1_000_000
    store = a_store(spec, random_records(spec, height), DEVICE, 0.1, dtype=torch.bfloat16)
    for count in (1, 64, 4096)[: 2 if SMALL else None]:
        rows = torch.randint(0, height, (1, count, 24), device=DEVICE)
        for path in ("in-place", "staged"):

            def read(rows: Any = rows, path: str = path) -> Any:
                store.path = path
                return store(rows)

            yield a_case(f"tiers, {path}, {count:,} tokens", called=called(read))
    store.close()


def gates() -> Iterator[SimpleNamespace]:
    """The gate with and without its convolution."""
    tokens = 32 if SMALL else 8192
    for conv in (False, True):
        width = 64 if SMALL else 2560
        case = GateCase(
            batch=2,
            count=tokens // 2,
            streams=4,
            width=width,
            dilation=3,
            conv=conv,
            dtype=torch.bfloat16,
        )
        call = make_call(case, DEVICE.type)

        def forward(call: Any = call) -> Any:
            with torch.no_grad():
                return call.run(ops.gate)

        def both(call: Any = call) -> Any:
            return call.gradients(ops.gate)

        yield a_case(
            f"gate, convolution: {conv}, {tokens:,} tokens",
            graph=graphed([forward]),
            backward=called(both),
        )


def attached() -> Iterator[SimpleNamespace]:
    """A small Llama with a memory: prefill, a decode step, a graph of it; HBM and host."""
    vocab = bare_vocab(200, 150)
    with tempfile.TemporaryDirectory() as folder:
        path = quantised_bundle(Path(folder) / "engram", vocab, "fp8_e8m0", dim=64)
        for placement in ("hbm", "host"):
            model = llama(200).to(DEVICE, torch.bfloat16)
            wake(attach(model, path, placement=placement))
            for shape in ((1, 1), (4, 200)):
                ids = torch.randint(3, 200, shape, device=DEVICE)

                def forward(model: Any = model, ids: Any = ids) -> Any:
                    with torch.no_grad():
                        return model(ids, use_cache=False).logits

                yield a_case(
                    f"attached, {placement}, {shape[0]} x {shape[1]} tokens",
                    called=called(forward),
                    graph=graphed([forward]),
                )


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
