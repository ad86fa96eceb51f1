"""Dequantising V4.1's rows (fp8_e8m0) to bfloat16 on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from runner import Case

from engram_cli.rows import DTYPES
from engram_cli.rows.codecs import fp8

ROWS, DIM, TIMES = 2**10, 256, 4

Work = Callable[[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]], None]


def cases() -> Iterator[Case]:
    """The kernel of convert, both codecs one after the other, and torch."""
    random = np.random.default_rng(0)
    items = random.integers(0, 127, (ROWS, DIM), dtype=np.uint8)
    scales = random.integers(110, 130, (ROWS, DIM // 32), dtype=np.uint8)
    piece = np.empty((ROWS, DIM), dtype=np.uint16)

    def timed(work: Work) -> Callable[[], None]:
        def call() -> None:
            for _ in range(TIMES):
                work(items, scales, piece)

        return call

    def whole(work: Work) -> Callable[[], NDArray[np.uint16]]:
        def call() -> NDArray[np.uint16]:
            out = np.empty((ROWS, DIM), dtype=np.uint16)
            work(items, scales, out)
            return out

        return call

    ways = {
        "decode, then encode": _by_codecs,
        "torch": _by_torch,
        "convert's kernel": fp8.to_bfloat16,
    }
    yield Case(
        name="fp8_e8m0 to bfloat16, one core",
        amount=TIMES * (items.nbytes + scales.nbytes),
        unit="bytes",
        notes=f"{ROWS:,} rows of {DIM}, {TIMES} times: they stay in the cache, as "
        "the pieces of convert do. Bytes are those that are read.",
        contestants={name: timed(work) for name, work in ways.items()},
        checks={name: whole(work) for name, work in ways.items()},
        same=np.array_equal,
        rounds=101,  # short calls, which other programs rarely interrupt
    )


def _by_codecs(
    items: NDArray[np.uint8], scales: NDArray[np.uint8], out: NDArray[np.uint16]
) -> None:
    values = np.empty(items.shape, dtype=np.float32)
    DTYPES.load("fp8_e8m0").decode(items, scales, values)
    DTYPES.load("bfloat16").encode(values, out, None)


def _by_torch(items: NDArray[np.uint8], scales: NDArray[np.uint8], out: NDArray[np.uint16]) -> None:
    import torch

    torch.set_num_threads(1)
    values = torch.from_numpy(items).view(torch.float8_e4m3fn).to(torch.float32)
    powers = torch.from_numpy(scales).view(torch.float8_e8m0fnu).to(torch.float32)
    scaled = values.reshape(len(items), -1, 32) * powers[:, :, None]
    torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)[:] = scaled.reshape(items.shape)
