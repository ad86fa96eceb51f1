"""Rows on disk: random reads compared with threads of pread and the disk's queue, then the cache.

The bundle takes 4.3 GB below ENGRAM_BENCHMARK_FOLDER, or else in /var/tmp, until the end.
"""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from direct_reads import DirectReads
from numpy.typing import NDArray
from runner import Case
from tier_cases import MappedRows

from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.formats.bundle_spec import ROWS, SCALES, BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values
from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime.tiers.disk import DiskRows
from engram_cli.runtime.tiers.row_cache import RowCache, slot_bytes

DISK = Path(os.environ.get("ENGRAM_BENCHMARK_FOLDER", "/var/tmp"))
ROWS_PER_HEAD = int(os.environ.get("ENGRAM_BENCHMARK_ROWS", 1_000_000))
READ = 2**15
MAPPED = 2**10  # read by faults, one after another
THREADS = (16, 32, 64, 128)
DEPTH = 256
READERS = (1, 2, 4, 16)
DIM, RECORD = 256, 264


def cases() -> Iterator[Case]:
    """Cold reads, and what the cache gives."""
    folder = Path(tempfile.mkdtemp(prefix="engram-disk-", dir=DISK))
    try:
        bundle = _bundle(folder / "engram")
        yield _cold(bundle)
        yield _cached(bundle)
    finally:
        shutil.rmtree(folder)


def _bundle(path: Path) -> Bundle:
    """16 M rows of 256 + 8 bytes; each begins with its number."""
    layout = hash_layout("qwen-ple", vocab_size=90_000, eos_id=1, rows_per_head=ROWS_PER_HEAD)
    spec = BundleSpec(
        layout=layout,
        layers=(layout.layer_ids[0],),
        dim=DIM,
        dtype="fp8_e8m0",
        hidden_size=64,
        num_layers=4,
        model_type="llama",
    )
    block = np.random.default_rng(0).integers(1, 100, (2**18, DIM), dtype=np.uint8)

    def rows(layer: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for first in range(0, spec.rows(layer), len(block)):
            own = block[: spec.rows(layer) - first]
            own[:, :8] = np.arange(first, first + len(own)).view(np.uint8).reshape(-1, 8)
            yield first, own

    def scales(layer: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for first in range(0, spec.rows(layer), len(block)):
            count = min(len(block), spec.rows(layer) - first)
            yield first, np.arange(first, first + count).view(np.uint8).reshape(-1, 8)

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    write_bundle(path, spec, rows, dense, scales=scales, tool_version="0")
    os.sync()
    return read_bundle(path)


class _Wanted:
    """Other rows for every call, so that no cache below the page cache knows them."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.layer = bundle.spec.layers[0]
        self.order = np.random.default_rng(1).permutation(bundle.spec.rows(self.layer))
        self.at = 0

    def prepare(self) -> None:
        """Go on to the next rows, with nothing of the files in memory."""
        self.at = (self.at + READ) % (len(self.order) - READ)
        for part in (ROWS, SCALES):
            for place in self.bundle.spans(self.layer, part):
                file = os.open(place.file, os.O_RDONLY)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)

    def rows(self, check: bool) -> NDArray[np.int64]:
        """The rows of this call; of the checks always the same."""
        return self.order[:READ] if check else self.order[self.at : self.at + READ]


def _cold(bundle: Bundle) -> Case:
    wanted = _Wanted(bundle)
    layer = wanted.layer
    (place,) = bundle.spans(layer, ROWS)
    file = os.open(place.file, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)

    def pread(threads: int, check: bool) -> NDArray[np.uint8]:
        rows = np.sort(wanted.rows(check))
        out = np.empty((len(rows), DIM), dtype=np.uint8)
        offsets = (place.begin + rows * DIM).tolist()

        def part(lines: NDArray[np.int64]) -> None:
            for line in lines.tolist():
                os.preadv(file, [out[line].data], offsets[line])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, np.array_split(np.arange(len(rows)), threads)))
        return out

    def gather(source: Any, check: bool, count: int = READ) -> NDArray[np.uint8]:
        rows = wanted.rows(check)[:count]
        rows = np.sort(rows) if check else rows
        out = torch.empty(len(rows), RECORD, dtype=torch.uint8)
        source.gather(torch.from_numpy(rows), out)
        return out.numpy()

    held = {threads: _without_cache(bundle, layer, threads) for threads in READERS}
    apart = DiskRows(bundle, layer, cache_bytes=0)
    mapped = MappedRows(bundle, layer)
    for maps in mapped._maps.values():
        for own in maps:
            own._mmap.madvise(mmap.MADV_RANDOM)
    calls: dict[str, Callable[[bool], NDArray[np.uint8]]] = {
        f"pread, {threads} threads": lambda check, threads=threads: pread(threads, check)
        for threads in THREADS
    }
    if platform.machine() == "x86_64" and hasattr(os, "O_DIRECT"):
        direct = DirectReads(place.file, DIM, DEPTH)
        calls[f"past the page cache, {DEPTH} in flight"] = lambda check: direct.read(
            place.begin + np.sort(wanted.rows(check)) * DIM
        )
    calls |= {
        f"engram, scales in memory, threads: {threads}": lambda check, source=source: gather(
            source, check
        )
        for threads, source in held.items()
    }
    calls |= {
        "engram, scales read too": lambda check: gather(apart, check),
        "memory map, rows and scales": lambda check: gather(mapped, check, MAPPED),
    }
    return Case(
        name="cold rows of 256 + 8 bytes at random",
        amount=READ,
        unit="rows",
        notes=f"{bundle.spec.rows(layer):,} rows in a file; other rows in each call, the page "
        "cache emptied before. pread and the queue read rows alone, in the order of the file; the "
        "others give records with scales. The map has the advice that reads are random.",
        contestants={name: lambda call=call: call(False) for name, call in calls.items()},
        checks={name: lambda call=call: call(True) for name, call in calls.items()},
        same=_same_rows,
        before=wanted.prepare,
        amounts={"memory map, rows and scales": MAPPED},
    )


def _without_cache(bundle: Bundle, layer: int, threads: int) -> DiskRows:
    """Scales in memory, no room for rows."""
    size = 2 * 8 * bundle.spec.rows(layer)
    source = DiskRows(bundle, layer, cache_bytes=size, threads=threads)
    source.cache = RowCache(RECORD, 0)
    return source


def _same_rows(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether both begin with the same rows; the map's are fewer, and sorted among themselves."""
    if len(other) < len(one):
        numbers = {bytes(row) for row in one[:, :DIM]}
        return all(bytes(row) in numbers for row in other[:, :DIM])
    return np.array_equal(one[:, :DIM], other[:, :DIM])


def _cached(bundle: Bundle) -> Case:
    """All rows of a request in the cache, beside a gather from one array of them."""
    layer, count = bundle.spec.layers[0], 2**17
    warm = np.random.default_rng(2).permutation(bundle.spec.rows(layer))[:count]
    source = DiskRows(bundle, layer, cache_bytes=8 * bundle.spec.rows(layer) * 4)
    every = torch.empty(count, RECORD, dtype=torch.uint8)
    source.gather(torch.from_numpy(warm), every)
    places = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:READ]
    rows = torch.from_numpy(warm)[places]
    out = torch.empty(READ, RECORD, dtype=torch.uint8)

    def array() -> NDArray[np.uint8]:
        torch.index_select(every.view(torch.int64), 0, places, out=out.view(torch.int64))
        return out.numpy().copy()

    def cache() -> NDArray[np.uint8]:
        source.gather(rows, out)
        return out.numpy().copy()

    return Case(
        name="rows that the cache has",
        amount=READ,
        unit="rows",
        notes=f"{count:,} rows cached, {slot_bytes(RECORD)} bytes each.",
        contestants={"index_select from an array": array, "engram": cache},
        same=np.array_equal,
    )
