"""Rows from the machine's disk through a bounded cache, beside what it gives to plain reads.

    python tests/benchmarks/py FOLDER ROWS_PER_HEAD

writes the bundle that is read: DeepSeek-V4.1's geometry, one layer, random rows. gpu_tiers.py
measures it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gpu_world as world
import numpy as np
import torch
from numpy.typing import NDArray
from tiers_cases import case, show, wait

from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.formats.bundle_spec import ROWS, BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import module_spec
from engram_cli.runtime import ops
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.tiers.disk_rows import DiskRows
from engram_cli.runtime.tiers.store import TieredRows

LAYER = 1
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


def limits(folder: Path, seconds: float) -> dict[int, float]:
    """Reads of a row's 256 bytes a second by the number of threads, the page cache empty before."""
    found = {}
    for threads in (16, 64, 256):
        forget(folder)
        found[threads] = random_reads(folder, 256, threads, seconds)
    return found


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


def disk(it: Any) -> list[dict[str, Any]]:
    """Rows of a bundle on disk: by themselves, then as look-ups of text through a bounded cache."""
    folder = it.bundle_folder()
    plain = limits(folder, it.size.disk_seconds)
    print("plain reads a second by threads", plain, flush=True)
    bundle = read_bundle(folder)
    cold = DiskRows(bundle, LAYER, cache_bytes=it.size.disk_cache)
    generator = torch.Generator().manual_seed(5)
    count = it.size.disk_tokens * 24
    out = torch.empty(count, cold.record_bytes, dtype=torch.uint8)

    def gather(turn: int) -> int:
        rows = torch.randint(0, cold.rows, (count,), generator=generator).unique()
        cold.gather(rows, out[: len(rows)])
        return len(rows)

    rate, grown = measure(folder, gather, it.size.disk_seconds)
    limit = max(plain.values())
    facts = {
        "plain reads a second, by threads": {k: round(v) for k, v in plain.items()},
        "share of the most plain reads": round(rate / limit, 3),
        "memory grown by, MB": round(grown / 1e6),
        "memory allowed, MB": round(it.size.disk_cache / 1e6),
        "memory that cache and scales may take, MB": round(cold.held_bytes / 1e6),
    } | {f"source: {k}": v for k, v in cold.counters().items()}
    rows = [
        {"name": f"pread of a row's 256 bytes, {k} threads", "rate": round(v), "ratio": v / limit}
        for k, v in plain.items()
    ]
    rows.append({"name": "engram, rows and scales", "rate": round(rate), "ratio": rate / limit})
    for row in rows:
        row["ratio"] = round(float(row["ratio"]), 3)
    name = f"disk, {it.disk_bytes(folder) / 1e9:.0f} GB, uniformly random rows"
    cases = [
        {"name": name, "amount": count, "unit": "rows", "notes": "", "facts": facts, "rows": rows}
    ]
    print(cases[0], flush=True)
    cold.close()
    return cases + _text_from_disk(it, bundle)


def _text_from_disk(it: Any, bundle: Bundle) -> list[dict[str, Any]]:
    """Text after text of the same domain, the cache empty at first and never full."""
    held_out = np.load(Path(os.environ["ENGRAM_TEXT"]) / "held_out.npz")
    hashed = hash_tensors(bundle.spec.layout, bundle.spec.layers, device=it.device)
    cases, count = [], it.size.disk_tokens
    for domain in ("python", "manual"):
        cold = DiskRows(bundle, LAYER, cache_bytes=it.size.disk_cache, warm=None)
        store = TieredRows(bundle.spec, cold, device=it.device, dtype=torch.bfloat16)
        ids = torch.from_numpy(held_out[domain].astype(np.int32)).to(it.device)
        forget(bundle.folder)
        times, asked = [], 0
        for part in ids[: 16 * count].split(count):
            begin = time.perf_counter()
            store(ops.find_rows(hashed, part[None])[0])
            wait(it.device)
            times.append(time.perf_counter() - begin)
            asked += len(part) * 24
        facts = {f"source: {k}": v for k, v in cold.counters().items()} | {"rows asked": asked}
        name = f"disk, text, {domain}, {count:,} tokens a call"
        cases.append(
            case(name, count, {"engram, the later half of 16 calls": times[8:]}, facts=facts)
        )
        show(cases[-1])
        store.close()
    return cases


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
