"""Rows below HBM on one GPU: look-ups from host memory, compared with SGLang's and vLLM's paths.

    ENGRAM_PEERS=FOLDER ENGRAM_TEXT=FOLDER python tests/benchmarks/gpu_tiers.py [RESULT.json]

ENGRAM_PEERS is described in gpu_peers.py, ENGRAM_TEXT is written by tiers_corpus.py. One layer of
DeepSeek-V4.1's geometry with 10 M rows a head, 63 GB of pinned host memory. With --tiny all of it
runs in small form on a CPU, without the peers. Figures are written after each section; one that
fails does not end the others. The sizes that the sweep found go to the file that
ENGRAM_TIERS_TUNING_OUT names.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import gpu_peers
import gpu_world as world
import numpy as np
import torch
from runner import RESULTS, commit, machine, versions
from tiers_cases import ROW_BYTES, Calls, case, in_a_row, one_at_a_time, show, wait
from tiers_world import IN_PLACE, OURS, SGLANG, STAGED, TINY, Size, World, check
from torch import Tensor

from engram_cli.runtime.tiers.embedding import TieredEmbedding
from engram_cli.runtime.tiers.reader import TierReader

NOTE = (
    "One call at a time: from the host's clock at the call to its vectors on the device, medians; "
    "token ids lie on the device. GB/s count rows of 264 bytes that were asked for, also where "
    "one is asked for twice or lies in HBM. Ratios are against the better of SGLang's UVA paths. "
    "The order of the contestants is another in each round, and no two calls of uniform ids "
    "look up the same ids: the first call for rows pays for the pages that the GPU does not know."
)

EACH = 9  # contestants of a round, at most: each has ids of its own


def _spent(store: TieredEmbedding) -> dict[str, float]:
    """Sums of the stages of staged reads, in seconds."""
    totals = store.staging_queue.transfers
    names = ("finding", "gathering", "copying", "rows", "bytes")
    return {name: getattr(totals, name) for name in names} | {"waited": store.waited}


def _stages(it: World, store: TieredEmbedding, sets: list[Tensor]) -> dict[str, Any]:
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
        "worker waits for row numbers, us": round(spent["finding"] * 1e6, 1),
        "gather by CPU threads, us": round(spent["gathering"] * 1e6, 1),
        "worker waits for a buffer, us": round(spent["copying"] * 1e6, 1),
        "caller waits for the worker, us": round(spent["waited"] * 1e6, 1),
        "rows that travel": round(spent["rows"]),
        "gathered GB/s": round(spent["bytes"] / max(spent["gathering"], 1e-9) / 1e9, 1),
    }


def sweep(it: World) -> list[dict[str, Any]]:
    """Ways to stage uniformly random rows; the fastest is taken from here on.

    Then up to how many bytes of rows a call reads in place: as long as that is faster.
    """
    count, device = it.size.tokens[-1], it.device
    sets, stores = it.id_sets(count), {"as by default": it.store}
    for buffers, mib in ((4, 1), (4, 2), (4, 4), (4, 8), (4, 16), (8, 1), (8, 2), (8, 4), (8, 8)):
        it.tuning = replace(it.tuning, ring_buffers=buffers, ring_buffer_bytes=mib * 2**20)
        stores[f"{buffers} buffers of {mib} MiB"] = it.tiered(None)
    calls = {name: [it.ours(own, x, "staged") for x in sets] for name, own in stores.items()}
    times = one_at_a_time(calls, device, it.size.rounds)
    best = min(times, key=lambda name: float(np.median(times[name])))
    cases = [case(f"ways to stage, uniform, {count:,} tokens", count, times)]
    show(cases[-1])
    it.store, least = stores[best], 0
    for few in it.size.crossing:
        sets = it.id_sets(few, EACH * (it.size.rounds + 1))
        ways = {
            name: [it.ours(it.store, x, path) for x in sets]
            for name, path in ((IN_PLACE, "in-place"), (STAGED, "staged"))
        }
        both = one_at_a_time(ways, device, it.size.rounds)
        cases.append(case(f"in place or staged, uniform, {few:,} tokens", few, both))
        show(cases[-1])
        if np.median(both[IN_PLACE]) < np.median(both[STAGED]):
            least = few * ROW_BYTES
    it.tuning = replace(it.store.tuning, in_place_bytes=least or it.tuning.in_place_bytes)
    it.store = it.tiered(None)
    print(f"taken: {best}; {it.tuning}", flush=True)
    return cases


def uniform(it: World) -> list[dict[str, Any]]:
    """Uniformly random token ids, rows in host memory alone."""
    cases = []
    for count in it.size.tokens:
        sets = it.id_sets(count, EACH * (it.size.rounds + 1))
        times = one_at_a_time(it.contestants(sets, {"": it.store}), it.device, it.size.rounds)
        facts = _stages(it, it.store, sets[:10]) if count >= 512 else {}
        cases.append(
            case(f"uniform, {count:,} tokens", count, times, base=_better(times), facts=facts)
        )
        show(cases[-1])
    return cases


def hot_rows_switch(it: World) -> list[dict[str, Any]]:
    """The choice between in place and staged where nine of ten look-ups find hot rows."""
    cases, most = [], 8 * it.size.crossing[-1]
    sets = it.id_sets(most, 12)
    rows = torch.cat([it.find(ids).flatten() for ids in sets])
    hot = rows[torch.rand(len(rows), device=rows.device) < 0.9].unique()
    store = it.tiered(hot.cpu().numpy())
    for count in (most // 8, most // 4, most // 2, most):
        parts = [ids[:, :count] for ids in sets]
        ways = {
            name: [it.ours(store, ids, path) for ids in parts]
            for name, path in ((IN_PLACE, "in-place"), (STAGED, "staged"), (OURS, None))
        }
        times = one_at_a_time(ways, it.device, it.size.rounds)
        store.path = None
        facts = {"read in place": store.reads_in_place(it.find(parts[0]))}
        name = f"in place or staged, 90 % hot, {count:,} tokens"
        cases.append(case(name, count, times, facts=facts))
        show(cases[-1])
    return cases


def throughput(it: World) -> list[dict[str, Any]]:
    """The same, several calls in a row; ours also with the next call's rows asked for early."""
    count = it.size.tokens[-1]
    times = in_a_row(_runs(it, it.id_sets(count, 8), {"": it.store}), it.device)
    name = f"uniform, {count:,} tokens, 8 calls in a row"
    cases = [case(name, count, times, base=_better(times))]
    show(cases[0])
    return cases


def _runs(it: World, sets: list[Tensor], stores: dict[str, TieredEmbedding]) -> dict[str, Any]:
    """Each contestant's calls on these token ids, one after another, and how many they are."""
    runs: dict[str, Any] = {
        name: (lambda calls=calls: [calls[i % len(calls)]() for i in range(len(sets))], len(sets))
        for name, calls in it.contestants(sets, stores).items()
    }
    for more, store in stores.items():
        early = partial(_ask_early, it, store, sets)
        runs[f"{STAGED}{more}, the next asked for early"] = (early, len(sets))
    return runs


def _ask_early(it: World, store: TieredEmbedding, sets: list[Tensor]) -> None:
    store.path = "staged"
    ahead = [TierReader({0: store}, [it.find(sets[0])])]
    for ids in [*sets[1:], None]:
        if ids is not None:
            ahead.append(TierReader({0: store}, [it.find(ids)]))
        ahead.pop(0).take(0)


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
        times = in_a_row(_runs(it, sets[:8], stores), it.device)
        name = f"text, {domain}, {count:,} tokens, {len(sets[:8])} calls in a row"
        cases.append(case(name, count, times, base=_better(times)))
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


def _text_facts(
    it: World, store: TieredEmbedding, sets: list[Tensor], count: int
) -> dict[str, Any]:
    """What is hot and what is distinct in these look-ups, and the stages."""
    rows = it.find(sets[0]).flatten()
    hot_set = store.tier_buffers.hot_set
    assert hot_set is not None
    is_hot = hot_set.rank(rows) >= 0
    cold = rows[~is_hot]
    facts: dict[str, Any] = {
        "hot": round(is_hot.float().mean().item(), 4),
        "cold and distinct": round(len(cold.unique()) / len(rows), 4),
        "distinct": round(len(rows.unique()) / len(rows), 4),
    }
    return facts | (_stages(it, store, sets) if count >= 4096 else {})


SECTIONS = (sweep, uniform, hot_rows_switch, throughput, captured, text)


def main(out: Path, size: Size, device: torch.device, names: Sequence[str]) -> None:
    """Measure the named sections; write the figures to `out` after each."""
    begin = time.perf_counter()
    it = World(size, device)
    gpu = {"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    print(f"{it.rows:,} rows pinned in {it.pinned_seconds:.0f} s, ready at", end=" ")
    print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    document: dict[str, Any] = {
        "benchmark": out.stem,
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
        document["tuning"] = asdict(it.tuning)
        print(f"== {section.__name__} done at {time.perf_counter() - begin:.0f} s", flush=True)
        out.write_text(json.dumps(document, indent=1) + "\n")
    if asked_for := os.environ.get("ENGRAM_TIERS_TUNING_OUT"):
        Path(asked_for).write_text(json.dumps(asdict(it.tuning)) + "\n")


def arguments() -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS / "gpu_tiers.json")
    parser.add_argument("--tiny", action="store_true")
    every = [section.__name__ for section in SECTIONS]
    parser.add_argument("--tokens", type=int, nargs="*", default=Size().tokens)
    parser.add_argument("--sections", nargs="*", choices=every, default=every)
    return parser.parse_args()


if __name__ == "__main__":
    asked = arguments()
    chosen = TINY if asked.tiny else Size(tokens=tuple(asked.tokens))
    main(
        asked.out,
        chosen,
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        asked.sections,
    )
