"""Look-up in HBM on one GPU: token ids to dequantised vectors, compared with SGLang and vLLM.

    ENGRAM_PEERS=FOLDER python tests/benchmarks/gpu_lookup.py

The folder is described in gpu_peers.py; the figures go to results/gpu_lookup.json, and from there
into docs/benchmarks.md. DeepSeek-V4.1's first table is filled at full size (101 GB).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_peers
import gpu_world as world
import torch
import torch.nn.functional as F
from runner import RESULTS, commit, machine, versions
from torch import Tensor

from engram_cli.runtime import lookup_reference, ops
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.lookup_reference import LookBack
from engram_cli.runtime.tables import Table

DEVICE = torch.device("cuda")
Calls = Sequence[Callable[[], Any]]
NOTE = (
    "Device time of one call, median of 15 replays of a CUDA graph of 24 calls over 12 sets of "
    "uniformly random token ids. GB/s count useful bytes: the row read and the vector written."
)
# Read off Nsight Compute's counters, over a table of 2.5 GB.
BOUNDS = {
    1: "three loads one after the other (ids, vocabulary, rows) and the launch; "
    "9 % of issue slots are used",
    8: "the same wait",
    64: "the same wait; DRAM is 3 % busy",
    512: "that wait for half of the time, then the writes",
    4096: "DRAM, less the ramp at both ends (50 % busy on average)",
    16384: "DRAM: 73 % busy, 320 bytes read for a row's 264 because scales cost 64 of their own; "
    "39 % of issue slots are used",
}


def id_sets(count: int, vocab: int, sets: int = 12) -> list[Tensor]:
    """Sets of int32[1, count] random token ids."""
    generator = torch.Generator(device=DEVICE).manual_seed(count)
    return [
        torch.randint(0, vocab, (1, count), device=DEVICE, dtype=torch.int32, generator=generator)
        for _ in range(sets)
    ]


def case(name: str, tokens: int, row_bytes: int, contestants: dict[str, Calls]) -> dict[str, Any]:
    """Time contestants, the first being the baseline; `row_bytes` useful bytes a token."""
    rows = []
    for contestant, calls in contestants.items():
        median, least, most = world.microseconds(calls)
        rows.append(
            {
                "name": contestant,
                "median_us": round(median, 3),
                "min_us": round(least, 3),
                "max_us": round(most, 3),
                "gb_s": round(tokens * row_bytes / median / 1000),
            }
        )
        print(f"{name:48} {contestant:44} {median:9.2f} us {rows[-1]['gb_s']:6} GB/s", flush=True)
    for row in rows:
        row["ratio"] = round(rows[0]["median_us"] / row["median_us"], 2)
    wide = name.startswith("deepseek")
    bound = BOUNDS[tokens] if wide else "DRAM; the wait of three loads below 4,096 tokens"
    return {"name": name, "tokens": tokens, "rows": rows, "bound": bound}


def same(found: Tensor, expected: Tensor) -> None:
    """Stops unless the bits are equal."""
    if not torch.equal(found.reshape(-1).view(torch.int16), expected.reshape(-1).view(torch.int16)):
        raise SystemExit("contestants differ")


def deepseek_cases(place: Path) -> list[dict[str, Any]]:
    """V4.1's first table, in prefill and, for few tokens, decode steps that write their history."""
    layout = world.published_layout("deepseek-v4.1")
    hashed = hash_tensors(layout, (1,), device=DEVICE)
    both = hash_tensors(layout, layout.layer_ids, device=DEVICE)
    rows = layout.layers[0].rows
    table = world.fp8_table(rows, 256, world.random_bytes(rows * 264, DEVICE))
    assert table.scales is not None
    sglang = gpu_peers.SGLang(place, both, table.values, table.scales)
    vllm = gpu_peers.VLLM(place, both, table.values, table.scales)
    vocab, found = len(hashed.lookup), []
    history = torch.full((512, 4), -1, dtype=torch.int32, device=DEVICE)
    for count in BOUNDS:
        sets = id_sets(count, vocab)
        mine = ops.look_up(hashed, sets[0], [table])
        same(mine, lookup_reference.look_up(hashed, sets[0], [table]))
        theirs = sglang.prefill(sets[0][0])()
        same(mine, theirs[1])
        same(mine, vllm.prefill(sets[0][0])()[1])
        contestants: dict[str, Calls] = {
            "SGLang: hash of 2 layers, gather of 1": [sglang.prefill(ids[0]) for ids in sets],
            "vLLM: hash of 2 layers, look-up of 1": [vllm.prefill(ids[0]) for ids in sets],
            "engram": [lambda ids=ids: ops.look_up(hashed, ids, [table]) for ids in sets],
        }
        found.append(
            case(f"deepseek-v4.1, layer 1, {count:,} tokens", count, 24 * 776, contestants)
        )
        if count > 512:
            continue
        positions = torch.full((count,), 100, dtype=torch.int64, device=DEVICE)
        back = LookBack(
            history=history, positions=positions, slots=torch.arange(count, device=DEVICE)
        )
        steps: dict[str, Calls] = {
            "SGLang: hash of 2 layers with commit, gather of 1": [
                sglang.decode(ids[0], 100) for ids in sets
            ],
            "engram, its history written by the same launch": [
                lambda ids=ids, back=back: ops.look_up_step(hashed, ids.view(-1, 1), [table], back)
                for ids in sets
            ],
        }
        name = f"deepseek-v4.1, layer 1, a step of {count:,} sequences"
        found.append(case(name, count, 24 * 776, steps))
    return found


def demo_cases() -> list[dict[str, Any]]:
    """The demo's geometry: 16 columns, rows of 64 bfloat16."""
    layout = world.published_layout("engram-v1")
    hashed = hash_tensors(layout, (1,), device=DEVICE)
    values = torch.randn(layout.layers[0].rows, 64, device=DEVICE, dtype=torch.bfloat16)
    table, found = Table(values=values), []
    compiled = torch.compile(lookup_reference.look_up, dynamic=False)
    for count in (512, 4096, 16384):
        sets = id_sets(count, len(hashed.lookup))
        rows = [lookup_reference.find_rows(hashed, ids)[0, 0] for ids in sets]
        same(ops.look_up(hashed, sets[0], [table]), F.embedding(rows[0], values))
        source = torch.randn(count * 16, 64, device=DEVICE).to(torch.bfloat16)
        target = torch.empty_like(source)
        contestants: dict[str, Calls] = {
            "F.embedding on row ids found beforehand": [
                lambda ids=ids: F.embedding(ids, values) for ids in rows
            ],
            "torch.compile of the plain twin": [
                lambda ids=ids: compiled(hashed, ids, [table]) for ids in sets
            ],
            "device copy of the same bytes": [lambda to=target, of=source: to.copy_(of)],
            "engram": [lambda ids=ids: ops.look_up(hashed, ids, [table]) for ids in sets],
        }
        found.append(case(f"engram-v1, {count:,} tokens", count, 16 * 256, contestants))
    return found


def copy_rate() -> float:
    """GB/s, read and written, of a device copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for turn in range(13):
        if turn == 3:
            begin.record()
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    return 10 * 2 * 2**31 / begin.elapsed_time(end) / 1e6


def main(out: Path) -> None:
    """Measure and write the figures to `out`."""
    place = gpu_peers.folder()
    if place is None:
        raise SystemExit("ENGRAM_PEERS names no folder")
    copied = round(copy_rate())
    print(f"device copy {copied} GB/s")
    cases = [*demo_cases(), *deepseek_cases(place)]
    result = {
        "benchmark": "gpu_lookup",
        "about": (__doc__ or "").strip().splitlines()[0],
        "notes": f"{NOTE} A device copy of 2 GiB reaches {copied:,} GB/s here.",
        "machine": machine() | {"gpu": torch.cuda.get_device_name()},
        "versions": versions() | gpu_peers.versions(place),
        "commit": commit(),
        "device_copy_gb_s": copied,
        "cases": cases,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "gpu_lookup.json")
