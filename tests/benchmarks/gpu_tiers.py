"""Rows below HBM on one GPU: look-ups from host memory and disk, beside SGLang's and vLLM's paths.

    ENGRAM_PEERS=FOLDER ENGRAM_TEXT=FOLDER python tests/benchmarks/gpu_tiers.py [RESULT.json]

ENGRAM_PEERS is described in gpu_peers.py, ENGRAM_TEXT is written by tiers_corpus.py. One layer of
DeepSeek-V4.1's geometry with 10 M rows a head, 63 GB of pinned host memory; the disk needs 21 GB in
ENGRAM_DISK, or the temporary folder. With --tiny all of it runs in small form on a CPU, without the
peers. Figures are written after each section; one that fails does not end the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gpu_disk
import gpu_peers
import gpu_world as world
import numpy as np
import torch
from runner import RESULTS, commit, machine, versions
from tiers_cases import ROW_BYTES, Calls, case, in_a_row, one_at_a_time, show, wait
from torch import Tensor

from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.runtime import gathering, ops
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.tables import Table
from engram_cli.runtime.tiers.host_rows import HostRows, host_memory
from engram_cli.runtime.tiers.reads import Reads
from engram_cli.runtime.tiers.source import table_of
from engram_cli.runtime.tiers.store import TieredRows

IN_PLACE, STAGED = "engram, in place", "engram, staged"
COPY = "copy engine alone"
SGLANG = ("SGLang, UVA", "SGLang, UVA, sorted", "SGLang, staged by 16 threads, given row ids")
NOTE = (
    "One call at a time: from the host's clock at the call to its vectors on the device, medians; "
    "token ids lie on the device. GB/s count rows of 264 bytes that were asked for, also where "
    "one is asked for twice or lies in HBM. Ratios are against the better of SGLang's UVA paths."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    rows_per_head: int = 10_000_000
    disk_rows_per_head: int = 3_200_000
    tokens: tuple[int, ...] = (1, 8, 64, 512, 4096, 16384)
    captured: tuple[int, ...] = (1, 8, 64, 512)
    domain_tokens: tuple[int, ...] = (64, 4096, 16384)
    rounds: int = 9
    disk_seconds: float = 2.0
    disk_tokens: int = 4096
    disk_cache: int = 2**31


TINY = Size(
    rows_per_head=2000,
    disk_rows_per_head=1000,
    tokens=(1, 64),
    captured=(1,),
    domain_tokens=(64,),
    rounds=2,
    disk_seconds=0.1,
    disk_tokens=64,
    disk_cache=2**18,
)


class World:
    """The rows in host memory, and who looks them up."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        self.spec = gpu_disk.spec_of(size.rows_per_head)
        self.hashed = hash_tensors(self.spec.layout, self.spec.layers, device=device)
        self.rows = self.spec.rows(gpu_disk.LAYER)
        begin = time.perf_counter()
        self.buffer = host_memory(self.rows * 264, pinned=device.type == "cuda")
        self.pinned_seconds = time.perf_counter() - begin
        for part in self.buffer.split(2**30):
            # As value or as scale, a byte is an ordinary number: 2 to 448, or 2**-63 to 1/2.
            part.copy_(world.random_bytes(len(part), device).bitwise_and_(0x7E).bitwise_or_(0x40))
        self._disk = Path(os.environ.get("ENGRAM_DISK") or tempfile.gettempdir()) / "tiers-bundle"
        command = [sys.executable, gpu_disk.__file__, self._disk, str(size.disk_rows_per_head)]
        self._writer = None if self._disk.exists() else subprocess.Popen(command)
        self.store = self.tiered(None)
        self.place = gpu_peers.folder() if device.type == "cuda" else None
        self.peers: dict[str, Any] = {}
        if self.place is not None:
            self._find_peers(self.place)

    def tiered(self, hot_rows: np.ndarray | None) -> TieredRows:
        """Our rows over the one buffer."""
        return TieredRows(
            self.spec,
            HostRows(self.buffer.view(-1, 264)),
            device=self.device,
            hot_rows=hot_rows,
            dtype=torch.bfloat16,
        )

    def _find_peers(self, place: Path) -> None:
        """The same bytes as their layout has them: all values, then all scales."""
        values = self.buffer[: self.rows * 256].view(-1, 256)
        scales = self.buffer[self.rows * 256 :].view(-1, 8)
        self.theirs = Table(values=values, scales=scales)
        for name, sort in zip(SGLANG, (False, True), strict=False):
            made = gpu_peers.SGLang(place, self.hashed, values, scales, sort=sort)
            self.peers[name] = lambda ids, made=made: made.prefill(ids[0])
        staged = gpu_peers.StagedSGLang(place, values, scales)
        self.peers[SGLANG[2]] = lambda ids: staged.prefill(self.find(ids).flatten().cpu())
        for name, sort in (("vLLM, UVA", False), ("vLLM, UVA, sorted", True)):
            other = gpu_peers.VLLM(place, self.hashed, values, scales, sort=sort)
            self.peers[name] = lambda ids, made=other: made.prefill(ids[0])

    def bundle_folder(self) -> Path:
        """The bundle on disk, written beside other work; waits for it."""
        if self._writer is not None and self._writer.wait(timeout=240):
            raise ValueError("the bundle was not written")
        return self._disk

    def disk_bytes(self, folder: Path) -> int:
        """What the files of a folder take."""
        return sum(path.stat().st_size for path in folder.iterdir())

    def find(self, ids: Tensor) -> Tensor:
        """int64[1, T, 24]: the rows of token ids [1, T]."""
        return ops.find_rows(self.hashed, ids)[0]

    def ours(self, store: TieredRows, ids: Tensor, path: Any) -> Callable[[], Tensor]:
        """A look-up by a forced path, or the chosen one."""

        def call() -> Tensor:
            store.path = path
            found: Tensor = store(self.find(ids))
            return found

        return call

    def id_sets(self, count: int, sets: int = 10) -> list[Tensor]:
        """Sets of int32[1, count] uniformly random token ids."""
        generator = torch.Generator(device=self.device).manual_seed(count)
        high, options = len(self.hashed.lookup), {"device": self.device, "dtype": torch.int32}
        return [
            torch.randint(0, high, (1, count), generator=generator, **options) for _ in range(sets)
        ]

    def contestants(self, sets: list[Tensor], stores: dict[str, TieredRows]) -> dict[str, Calls]:
        """Everyone on these token ids; `stores` by what is added to our name."""
        found: dict[str, Calls] = {n: [peer(x) for x in sets] for n, peer in self.peers.items()}
        if self.device.type == "cuda":
            target = torch.empty(sets[0].numel() * ROW_BYTES, dtype=torch.uint8, device="cuda")
            source = self.buffer[: len(target)]
            found[COPY] = [lambda: target.copy_(source, non_blocking=True)]
        for more, store in stores.items():
            for name, path in ((IN_PLACE, "in-place"), (STAGED, "staged")):
                found[f"{name}{more}"] = [self.ours(store, x, path) for x in sets]
        return found


def check(it: World) -> dict[str, Any]:
    """Every way of reading gives what the twin gives on the CPU."""
    ids = it.id_sets(64)[0]
    cpu = hash_tensors(it.spec.layout, it.spec.layers)
    rows = gathering.find_rows(cpu, ids.cpu())
    records = table_of(it.buffer.view(-1, 264), it.spec)
    expected = gathering.vectors([records], rows, torch.bfloat16)[0]
    hot = np.unique(rows.numpy().reshape(-1)[::3])
    for store in (it.store, it.tiered(hot)):
        for path in ("in-place", "staged", None):
            _same(it.ours(store, ids, path)(), expected)
    if it.peers:
        other = gathering.vectors([it.theirs], rows, torch.bfloat16)[0]
        for name, peer in it.peers.items():
            found = peer(ids)()
            _same(found[1] if isinstance(found, tuple) else found, other, name)
    return {"checked": "all ways of reading equal the twin"}


def _same(found: Tensor, expected: Tensor, name: str = "engram") -> None:
    bits = [x.reshape(-1).cpu().view(torch.int16) for x in (found, expected)]
    if not torch.equal(*bits):
        raise ValueError(f"{name} reads other vectors")


def _spent(store: TieredRows) -> dict[str, float]:
    """Sums of the stages of staged reads, in seconds."""
    road = store.road.travelled
    names = ("seconds_found", "seconds_gathered", "seconds_copies", "rows", "bytes")
    return {name: getattr(road, name) for name in names} | {"seconds_waited": store.waited}


def _stages(it: World, store: TieredRows, sets: list[Tensor]) -> dict[str, Any]:
    """Microseconds of each stage of a staged call, and of the launches before it, by differences.

    `find`: hash, hot bits, sort and the copy of row numbers, on the device.
    """
    calls = [it.ours(store, ids, "staged") for ids in sets]
    calls[0]()
    wait(it.device)
    before = _spent(store)
    for call in calls:
        call()
        wait(it.device)
    spent = {k: (v - before[k]) / len(calls) for k, v in _spent(store).items()}
    begin = time.perf_counter()
    for ids in sets:
        it.find(ids)
    wait(it.device)
    hashing = (time.perf_counter() - begin) / len(sets)
    return {
        "hash alone, us": round(hashing * 1e6, 1),
        "worker waits for row numbers, us": round(spent["seconds_found"] * 1e6, 1),
        "gather by CPU threads, us": round(spent["seconds_gathered"] * 1e6, 1),
        "worker waits for a buffer, us": round(spent["seconds_copies"] * 1e6, 1),
        "caller waits for the worker, us": round(spent["seconds_waited"] * 1e6, 1),
        "rows that travel": round(spent["rows"]),
        "gathered GB/s": round(spent["bytes"] / max(spent["seconds_gathered"], 1e-9) / 1e9, 1),
    }


def uniform(it: World) -> list[dict[str, Any]]:
    """Uniformly random token ids, rows in host memory alone."""
    cases = []
    for count in it.size.tokens:
        sets = it.id_sets(count)
        times = one_at_a_time(it.contestants(sets, {"": it.store}), it.device, it.size.rounds)
        facts = _stages(it, it.store, sets) if count >= 512 else {}
        cases.append(
            case(f"uniform, {count:,} tokens", count, times, base=_better(times), facts=facts)
        )
        show(cases[-1])
    return cases


def throughput(it: World) -> list[dict[str, Any]]:
    """The same, several calls in a row; ours also with the next call's rows asked for early."""
    count = it.size.tokens[-1]
    sets = it.id_sets(count, 8)
    everyone = it.contestants(sets, {"": it.store})
    runs = {
        name: (lambda calls=calls: [calls[i % len(calls)]() for i in range(len(sets))], len(sets))
        for name, calls in everyone.items()
    }

    def early() -> None:
        it.store.path = "staged"
        ahead = [Reads([it.store], [it.find(sets[0])])]
        for ids in [*sets[1:], None]:
            if ids is not None:
                ahead.append(Reads([it.store], [it.find(ids)]))
            ahead.pop(0).take(0)

    runs[f"{STAGED}, the next asked for early"] = (early, len(sets))
    times = in_a_row(runs, it.device)
    name = f"uniform, {count:,} tokens, {len(sets)} calls in a row"
    cases = [case(name, count, times, base=_better(times))]
    show(cases[0])
    return cases


def _better(times: dict[str, list[float]]) -> str | None:
    """The better of SGLang's two UVA paths."""
    known = {name: float(np.median(times[name])) for name in SGLANG[:2] if name in times}
    return min(known, key=known.__getitem__) if known else None


def captured(it: World) -> list[dict[str, Any]]:
    """Few tokens, replayed from a CUDA graph: what reads in place."""
    cases = []
    for count in it.size.captured:
        sets = it.id_sets(count, 12)
        it.store.path = "in-place"
        everyone: dict[str, Calls] = {
            name: [peer(ids) for ids in sets] for name, peer in it.peers.items() if "UVA" in name
        }
        everyone[IN_PLACE] = [it.ours(it.store, ids, "in-place") for ids in sets]
        if it.device.type == "cuda":
            times = {
                name: [x / 1e6 for x in world.microseconds(calls)]
                for name, calls in everyone.items()
            }
        else:
            times = one_at_a_time(everyone, it.device, it.size.rounds)
        cases.append(case(f"a CUDA graph, {count:,} tokens", count, times, base=_better(times)))
        show(cases[-1])
    return cases


def text(it: World) -> list[dict[str, Any]]:
    """Held-out text by domain, without and with a hot set that other text has chosen."""
    place = os.environ.get("ENGRAM_TEXT")
    if place is None:
        raise ValueError("ENGRAM_TEXT names no folder")
    figures = json.loads((Path(place) / "figures.json").read_text())
    hot = _hot_rows(Path(place), figures, it)
    held_out = np.load(Path(place) / "held_out.npz")
    stores = {", no hot set": it.store, "": it.tiered(hot)}
    cases = []
    for domain in held_out.files:
        ids = torch.from_numpy(held_out[domain].astype(np.int32)).to(it.device)
        for count in it.size.domain_tokens:
            sets = [part[None] for part in ids[: 10 * count].split(count) if len(part) == count]
            times = one_at_a_time(it.contestants(sets, stores), it.device, it.size.rounds)
            facts = _text_facts(it, stores[""], sets, count)
            name = f"text, {domain}, {count:,} tokens"
            cases.append(case(name, count, times, base=_better(times), facts=facts))
            show(cases[-1])
    return cases


def _hot_rows(place: Path, figures: dict[str, Any], it: World) -> np.ndarray:
    """The rows that the counted text has chosen; any 5 % where sizes are tiny."""
    if figures["rows"] != it.rows:
        return np.arange(0, it.rows, 20, dtype=np.int64)
    if figures["fingerprint"] != it.spec.layout.fingerprint:
        raise ValueError("the hot rows are of another layout")
    bits = np.load(place / "hot.npz")["bits"]
    return np.flatnonzero(np.unpackbits(bits, count=it.rows))


def _text_facts(it: World, store: TieredRows, sets: list[Tensor], count: int) -> dict[str, Any]:
    """What is hot and what is distinct in these look-ups, and the stages."""
    rows = it.find(sets[0]).flatten()
    hot_set = store.shelves.hot_set
    assert hot_set is not None
    is_hot = hot_set.rank(rows) >= 0
    cold = rows[~is_hot]
    facts: dict[str, Any] = {
        "hot": round(is_hot.float().mean().item(), 4),
        "cold and distinct": round(len(cold.unique()) / len(rows), 4),
        "distinct": round(len(rows.unique()) / len(rows), 4),
    }
    return facts | (_stages(it, store, sets) if count >= 4096 else {})


def disk(it: World) -> list[dict[str, Any]]:
    """Rows of a bundle on disk: by themselves, then as look-ups of text through a bounded cache."""
    folder = it.bundle_folder()
    limits = gpu_disk.limits(folder, it.size.disk_seconds)
    print("plain reads a second by threads", limits, flush=True)
    from engram_cli.runtime.tiers.disk_rows import DiskRows

    bundle = read_bundle(folder)
    cold = DiskRows(bundle, gpu_disk.LAYER, cache_bytes=it.size.disk_cache, warm=None)
    generator = torch.Generator().manual_seed(5)
    count = it.size.disk_tokens * 24
    out = torch.empty(count, cold.record_bytes, dtype=torch.uint8)

    def gather(turn: int) -> int:
        rows = torch.randint(0, cold.rows, (count,), generator=generator).unique()
        cold.gather(rows, out[: len(rows)])
        return len(rows)

    rate, grown = gpu_disk.measure(folder, gather, it.size.disk_seconds)
    limit = max(limits.values())
    facts = {
        "plain reads a second, by threads": {k: round(v) for k, v in limits.items()},
        "share of the most plain reads": round(rate / limit, 3),
        "memory grown by, MB": round(grown / 1e6),
        "cache, MB": round(it.size.disk_cache / 1e6),
    } | {f"source: {k}": v for k, v in cold.counters().items()}
    rows = [
        {"name": f"pread of a row's 256 bytes, {k} threads", "rate": round(v), "ratio": v / limit}
        for k, v in limits.items()
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


def _text_from_disk(it: World, bundle: Bundle) -> list[dict[str, Any]]:
    """Text after text of the same domain, the cache empty at first and never full."""
    from engram_cli.runtime.tiers.disk_rows import DiskRows

    held_out = np.load(Path(os.environ["ENGRAM_TEXT"]) / "held_out.npz")
    hashed = hash_tensors(bundle.spec.layout, bundle.spec.layers, device=it.device)
    cases, count = [], it.size.disk_tokens
    for domain in ("python", "manual"):
        cold = DiskRows(bundle, gpu_disk.LAYER, cache_bytes=it.size.disk_cache, warm=None)
        store = TieredRows(bundle.spec, cold, device=it.device, dtype=torch.bfloat16)
        ids = torch.from_numpy(held_out[domain].astype(np.int32)).to(it.device)
        gpu_disk.forget(bundle.folder)
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


SECTIONS = (uniform, throughput, captured, text, disk)


def main(out: Path, size: Size, device: torch.device, names: Sequence[str]) -> None:
    """Measure the named sections; write the figures to `out` after each."""
    begin = time.perf_counter()
    it = World(size, device)
    gpu = {"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    print(f"{it.rows:,} rows pinned in {it.pinned_seconds:.0f} s, ready at", end=" ")
    print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    document: dict[str, Any] = {
        "benchmark": "gpu_tiers",
        "about": (__doc__ or "").strip().splitlines()[0],
        "notes": f"{NOTE} {it.rows:,} rows on the host, {len(it.buffer) / 1e9:.1f} GB, pinned in "
        f"{it.pinned_seconds:.0f} s.",
        "machine": machine() | gpu,
        "versions": versions() | (gpu_peers.versions(it.place) if it.place else {}),
        "commit": os.environ.get("ENGRAM_COMMIT") or commit(),
        "cases": [],
        "failed": [],
    }
    for section in [check, *(x for x in SECTIONS if x.__name__ in names)]:
        try:
            with torch.no_grad():
                found = section(it)
            if isinstance(found, list):
                document["cases"] += found
        except Exception:
            document["failed"].append(f"{section.__name__}: {traceback.format_exc()}")
            print(traceback.format_exc(), flush=True)
        print(f"== {section.__name__} done at {time.perf_counter() - begin:.0f} s", flush=True)
        out.write_text(json.dumps(document, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS / "gpu_tiers.json")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--disk-rows-per-head", type=int)
    every = [section.__name__ for section in SECTIONS]
    parser.add_argument("--sections", nargs="*", choices=every, default=every)
    return parser.parse_args()


if __name__ == "__main__":
    asked = arguments()
    chosen = TINY if asked.tiny else Size()
    if asked.disk_rows_per_head:
        chosen = replace(chosen, disk_rows_per_head=asked.disk_rows_per_head)
    main(
        asked.out,
        chosen,
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        asked.sections,
    )
