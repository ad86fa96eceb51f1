"""Rows from the machine's disk through a bounded cache, compared with plain reads of the disk.

    python tests/benchmarks/gpu_disk.py FOLDER ROWS_PER_HEAD

writes the bundle that is read: DeepSeek-V4.1's geometry, one layer, random rows. gpu_tiers.py
measures it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gpu_world as world
import numpy as np
import torch
from direct_reads import DirectReads
from numpy.typing import NDArray
from runner import RESULTS, commit, machine, versions
from tiers_cases import case, show, wait

from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_spec import ROWS, BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import module_spec
from engram_cli.runtime import ops
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.tiers.disk import DiskRows
from engram_cli.runtime.tiers.embedding import TieredEmbedding

LAYER = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured: `tokens` a call, `cache` bytes of memory for rows and scales."""

    rows_per_head: int = 1_270_000
    seconds: float = 2.0
    tokens: int = 4096
    cache: int = 2**31


TINY = Size(rows_per_head=20_000, seconds=0.1, tokens=64, cache=2**24)
_BLOCK_ROWS = 2**18  # the same random rows over and over: what they say is not measured


def spec_of(rows_per_head: int, *, hidden_size: int = 64) -> BundleSpec:
    """One layer of V4.1's geometry, of so many rows a head."""
    return BundleSpec(
        layout=world.published_layout(
            "deepseek-v4.1", layers=(LAYER,), rows_per_head=rows_per_head
        ),
        layers=(LAYER,),
        dim=256,
        dtype="fp8_e8m0",
        hidden_size=hidden_size,
        num_layers=2,
        model_type="",
        module=module_spec("deepseek-v4.1"),
    )


def write(folder: Path, rows_per_head: int) -> None:
    """The bundle."""
    spec = spec_of(rows_per_head)
    random = np.random.default_rng(0).integers(0, 2**63, (_BLOCK_ROWS, 33))
    random &= 0x7EFEFEFEFEFEFEFE  # no NaN
    block = random.view(np.uint8).reshape(_BLOCK_ROWS, 264)
    values = np.ascontiguousarray(block[:, :256])
    scales = np.ascontiguousarray(block[:, 256:])

    def pieces(part: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[Any]]]:
        for first in range(0, spec.rows(LAYER), _BLOCK_ROWS):
            yield first, part[: min(_BLOCK_ROWS, spec.rows(LAYER) - first)]

    def dense(layer: int, zero_rows: bool) -> dict[str, NDArray[np.float32]]:
        return {name: np.zeros(shape, np.float32) for name, shape in spec.dense_shapes.items()}

    write_bundle(
        folder,
        spec,
        lambda layer: pieces(values),
        dense,
        scales=lambda layer: pieces(scales),
        tool_version="0",
    )


def forget(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes() -> int:
    """What this process has in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("VmRSS:")).split()[1])


def measure(folder: Path, call: Callable[[int], int], seconds: float) -> tuple[float, int]:
    """Rows a second of `call(turn)`, which gives how many it read, and the memory it grew by."""
    call(0)
    forget(folder)
    held, rows, turn = resident_bytes(), 0, 1
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        rows += call(turn)
        turn += 1
    return rows / (time.perf_counter() - begin), resident_bytes() - held


def random_reads(folder: Path, size: int, threads: int, seconds: float) -> float:
    """Reads a second of `size` bytes at random multiples of 256 of the rows' files.

    Each thread in a loop of compiled code: pread, and nothing else. No page is read twice but by
    chance.
    """
    read = _reader()
    paths = sorted(folder.glob(f"{ROWS}-*"))
    rest = [read, size, time.perf_counter() + seconds, paths]
    counts = [0] * threads
    workers = [
        threading.Thread(target=_work, args=(place, counts, *rest)) for place in range(threads)
    ]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begin)


def _work(
    place: int, counts: list[int], read: Any, size: int, end: float, paths: Sequence[Path]
) -> None:
    generator = np.random.default_rng([place, size, int(end)])
    buffer = np.empty(size, dtype=np.uint8)
    files = [os.open(path, os.O_RDONLY) for path in paths]
    for file in files:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    while time.perf_counter() < end:
        file = files[generator.integers(len(files))]
        blocks = (os.fstat(file).st_size - size) // 256
        places = generator.integers(0, blocks, 256) * 256
        counts[place] += read(file, buffer, places)
    for file in files:
        os.close(file)


@cache
def _reader() -> Any:
    """A compiled function (file, buffer, places) -> how many reads came back whole."""
    from numba import njit

    pread = ctypes.CDLL(None).pread
    pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
    pread.restype = ctypes.c_ssize_t

    @njit("int64(int64, uint8[::1], int64[::1])", nogil=True)
    def read(file, buffer, places):  # type: ignore[no-untyped-def]
        done = 0
        for place in places:
            done += pread(file, buffer.ctypes.data, buffer.size, place) == buffer.size
        return done

    return read


def queue_reads(folder: Path, seconds: float) -> float:
    """Reads a second past the page cache, 256 in flight, in the first of the rows' files."""
    path = min(folder.glob(f"{ROWS}-*"))
    direct = DirectReads(path, 256, 256)
    generator = np.random.default_rng(9)
    blocks = path.stat().st_size // 256 - 2
    done, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        done += len(direct.read(np.sort(generator.integers(0, blocks, 2**15)) * 256))
    return done / (time.perf_counter() - begin)


def uniform(folder: Path, size: Size) -> dict[str, Any]:
    """Random rows by themselves: plain reads, the disk's queue, ours by its threads."""
    rates: dict[str, float] = {}
    for threads in (16, 64, 256):
        forget(folder)
        name = f"pread of a row's 256 bytes, {threads} threads"
        rates[name] = random_reads(folder, 256, threads, size.seconds)
    best = max(rates.values())
    rates["past the page cache, 256 in flight, 256 bytes"] = queue_reads(folder, size.seconds)
    bundle, facts = read_bundle(folder), {}
    for threads in (1, 2, 16):
        cold = DiskRows(bundle, LAYER, cache_bytes=size.cache, threads=threads)
        rate, grown = measure(folder, _gathering(cold, size.tokens * 24, threads), size.seconds)
        rates[f"engram, rows and scales, threads: {threads}"] = rate
        facts[f"memory grown by with {threads} threads, MB"] = round(grown / 1e6)
        facts["memory that cache and scales may take, MB"] = round(cold.held_bytes / 1e6)
        cold.close()
    rows = [
        {"name": name, "rate": round(rate), "ratio": round(rate / best, 3)}
        for name, rate in rates.items()
    ]
    for row in rows:
        print(row, flush=True)
    print(facts, flush=True)
    size_gb = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    return {
        "name": f"uniformly random rows of {size_gb:.0f} GB on disk",
        "amount": size.tokens * 24,
        "unit": "rows",
        "notes": "Ratios are against the best plain reads. "
        + "; ".join(f"{name}: {value}" for name, value in facts.items()),
        "facts": facts,
        "rows": rows,
    }


def _gathering(cold: DiskRows, count: int, seed: int) -> Callable[[int], int]:
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(count, cold.record_bytes, dtype=torch.uint8)

    def gather(turn: int) -> int:
        rows = torch.randint(0, cold.rows, (count,), generator=generator).unique()
        cold.gather(rows, out[: len(rows)])
        return len(rows)

    return gather


def text(folder: Path, size: Size, device: torch.device) -> list[dict[str, Any]]:
    """Text after text of the same domain as look-ups, the cache empty at first and never full."""
    bundle = read_bundle(folder)
    held_out = np.load(Path(os.environ["ENGRAM_TEXT"]) / "held_out.npz")
    hashed = hash_tensors(bundle.spec.layout, bundle.spec.layers, device=device)
    cases, count = [], size.tokens
    for domain in ("python", "manual"):
        cold = DiskRows(bundle, LAYER, cache_bytes=size.cache)
        store = TieredEmbedding(bundle.spec, cold, device=device, dtype=torch.bfloat16)
        ids = torch.from_numpy(held_out[domain].astype(np.int32)).to(device)
        forget(folder)
        times, asked = [], 0
        for part in ids[: 8 * count].split(count):
            begin = time.perf_counter()
            store(ops.find_rows(hashed, part[None])[0])
            wait(device)
            times.append(time.perf_counter() - begin)
            asked += len(part) * 24
        facts = {"rows asked for": asked} | {f"{k} at the disk": v for k, v in _sums(cold).items()}
        name = f"text, {domain}, {count:,} tokens a call, rows on disk"
        cases.append(case(name, count, {"engram, the later half of 8": times[4:]}, facts=facts))
        show(cases[-1])
        store.close()
    return cases


def _sums(cold: DiskRows) -> dict[str, float]:
    return {name: round(value, 3) for name, value in cold.counters().items()}


def main() -> None:
    """Write the bundle, measure, write the figures after each part, take the bundle away."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS / "gpu_disk.json")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    size = TINY if asked.tiny else Size()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = {"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("ENGRAM_DISK"))) / "bundle"
    begin = time.perf_counter()
    write(folder, size.rows_per_head)
    print(f"bundle written in {time.perf_counter() - begin:.0f} s", flush=True)
    document: dict[str, Any] = {
        "benchmark": "gpu_disk",
        "about": (__doc__ or "").strip().splitlines()[0],
        "machine": machine() | gpu,
        "versions": versions(),
        "commit": os.environ.get("ENGRAM_COMMIT") or commit(),
        "cases": [],
    }
    try:
        with torch.no_grad():
            document["cases"].append(uniform(folder, size))
            asked.out.write_text(json.dumps(document, indent=1) + "\n")
            document["cases"] += text(folder, size, device)
            asked.out.write_text(json.dumps(document, indent=1) + "\n")
    finally:
        shutil.rmtree(folder.parent)


if __name__ == "__main__":
    main()
