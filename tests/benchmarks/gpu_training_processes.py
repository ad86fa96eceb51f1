"""Training rows over several GPUs, a process each, compared with one GPU: steps, and the most rows.

    python tests/benchmarks/gpu_training.py processes

Run by gpu_training.py. The figures go to results/gpu_training_processes.json. Without a GPU, two
processes run it on small sizes with gloo, to try it.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from runner import commit, machine, versions
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime import (
    RowwiseAdagrad,
    RowwiseAdam,
    attach,
    average_row_gradients,
    ops,
    parameter_groups,
)
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.sharding.owners import count_at
from engram_cli.runtime.sharding.trained.rows import ShardedRows, look_up
from engram_cli.runtime.tables import Table
from engram_cli.vocab.lookup import VocabMap

HAS_GPU = torch.cuda.is_available()
DIM = 64
VOCABULARY = 49_152 if HAS_GPU else 500
SEQUENCES, LENGTH = (32, 512) if HAS_GPU else (2, 32)
TOKENS = SEQUENCES * LENGTH
TABLE_ROWS = 646_400 if HAS_GPU else 300  # of a head, in the steps of rows alone
MODEL_ROWS = 200_000 if HAS_GPU else 300
ROUNDS, STEPS, SETS = (5, 8, 12) if HAS_GPU else (2, 2, 2)
NOTE = (
    "A process has one GPU and a batch of 16,384 tokens of its own, uniformly random ids: nearly "
    "all rows of a step are distinct, the worst case for the exchange. Rates count the tokens of "
    "all processes; medians of 5 rounds of 8 steps, the arms in turn. Two GPUs take twice the "
    "global batch of one."
)
Step = Callable[[int], None]


def a_layout(rows_per_head: int, layers: tuple[int, ...]) -> HashLayout:
    """16 heads a layer over a vocabulary whose ids are all distinct."""
    ids = np.arange(VOCABULARY, dtype=np.int32)
    vocab = VocabMap(lookup=ids, size=VOCABULARY, pad_id=2)
    return hash_layout("engram-v1", vocab, rows_per_head=rows_per_head, layers=layers)


class Arms:
    """Contestants of one process, timed in turn with those of the other processes."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self.rank, self.device = rank, device
        self.world = dist.get_world_size()
        self.cases: list[dict[str, Any]] = []

    def wait(self) -> None:
        """Wait for the device and the other processes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()

    def measure(self, name: str, notes: str, arms: dict[str, tuple[Step, bool]]) -> None:
        """Time arms: a step, and whether all processes take it or the first one alone."""
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for turn in range(ROUNDS + 1):
            for arm, (step, together) in arms.items():
                self.wait()
                begin = time.perf_counter()
                if together or not self.rank:
                    for number in range(STEPS):
                        step(number)
                    if self.device.type == "cuda":
                        torch.cuda.synchronize()
                if together:
                    dist.barrier()
                if turn:
                    times[arm].append((time.perf_counter() - begin) / STEPS)
                self.wait()
        rows: list[dict[str, Any]] = []
        for arm, own in times.items():
            tokens = TOKENS * (self.world if arms[arm][1] else 1)
            rate = tokens / statistics.median(own)
            rows.append(
                {
                    "name": arm,
                    "median_s": round(statistics.median(own), 7),
                    "min_s": round(min(own), 7),
                    "max_s": round(max(own), 7),
                    "rate": round(rate),
                    "ratio": round(rate / (rows[0]["rate"] if rows else rate), 2),
                }
            )
            if not self.rank:
                print(f"{name}: {arm:45} {rows[-1]['median_s'] * 1e3:8.3f} ms", end=" ")
                print(f"{rate:12,.0f} tokens/s {rows[-1]['ratio']:.2f}", flush=True)
        self.cases.append(
            {"name": name, "amount": TOKENS, "unit": "tokens", "runs": ROUNDS, "notes": notes}
            | {"facts": {}, "rows": rows}
        )


def rows_alone(arms: Arms, kind: type[torch.optim.Optimizer]) -> None:
    """Look-up, gradient and optimiser of one layer, with nothing else to hide behind."""
    layout = a_layout(TABLE_ROWS, (1,))
    hashed = hash_tensors(layout, (1,), device=arms.device)
    height = hashed.heights[0]
    generator = torch.Generator(device=arms.device).manual_seed(arms.rank)
    ids = torch.randint(
        0, VOCABULARY, (SETS, 8, TOKENS // 8), device=arms.device, generator=generator
    )
    given = torch.randn(1, 8, TOKENS // 8, 16 * DIM, device=arms.device, generator=generator)
    whole = nn.Parameter(torch.randn(height, DIM, device=arms.device) * 0.02)
    sharded = ShardedRows(
        torch.randn(count_at(height, arms.rank, arms.world), DIM, device=arms.device), height
    )
    optimisers = kind([whole], lr=1e-3), kind([sharded.weight], lr=1e-3)  # type: ignore[call-arg]

    def alone(turn: int) -> None:
        table = Table(values=whole, gradients="sparse")
        ops.look_up(hashed, ids[turn % SETS], [table]).backward(given)
        optimisers[0].step()
        optimisers[0].zero_grad()

    def together(turn: int) -> None:
        look_up([sharded], ops.find_rows(hashed, ids[turn % SETS])).backward(given)
        optimisers[1].step()
        optimisers[1].zero_grad()

    arms.measure(
        f"{height:,} rows of {DIM} float32 alone, {kind.__name__}",
        "Look-up, gradient and optimiser of one layer in a plain loop, without a model.",
        {"1 GPU": (alone, False), f"{arms.world} GPUs, rows sharded": (together, True)},
    )


def write_model_bundle(folder: Path) -> None:
    """A bundle for the model below, its rows the same random ones again and again."""
    layout = a_layout(MODEL_ROWS, (2, 14))
    spec = BundleSpec(
        layout=layout,
        layers=layout.layer_ids,
        dim=DIM,
        dtype="float32",
        hidden_size=576,
        num_layers=30 if HAS_GPU else 15,
        model_type="llama",
    )
    block = np.random.default_rng(0).standard_normal((2**18, DIM)).astype(np.float32) * 0.02

    def rows(layer: int) -> Any:
        for first in range(0, spec.rows(layer), len(block)):
            yield first, block[: spec.rows(layer) - first]

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    write_bundle(folder, spec, rows, dense, tool_version="0")


def with_model(arms: Arms, folder: Path) -> None:
    """A Llama of 135 M parameters and a memory in two layers, all of it trained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if not arms.rank:
        write_model_bundle(folder / "engram")
    arms.wait()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30 if HAS_GPU else 15,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=2,
    )
    generator = torch.Generator().manual_seed(arms.rank)
    ids = torch.randint(3, VOCABULARY, (SETS, SEQUENCES, LENGTH), generator=generator)
    ids = ids.to(arms.device)

    def arm(placement: str | None, *, together: bool) -> Step:
        model: Any = LlamaForCausalLM(config).to(arms.device).train()
        if placement is not None:
            attach(model, folder / "engram", sparse_gradients=True, placement=placement)
        replicated = together and placement == "hbm"
        if replicated:
            names = [n for n, _ in model.named_parameters() if "multi_head_embedding" in n]
            model._ddp_params_and_buffers_to_ignore = names
        wrapped: Any = model
        if together:
            wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimisers: list[torch.optim.Optimizer]
        if placement is None:
            optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=HAS_GPU)]
        else:
            rest, rows = parameter_groups(model, lr=1e-4)
            optimisers = [torch.optim.AdamW([rest], fused=HAS_GPU), RowwiseAdam([rows])]

        def step(turn: int) -> None:
            batch = ids[turn % SETS]
            with torch.autocast(arms.device.type, dtype=torch.bfloat16):
                loss = wrapped(batch, labels=batch, use_cache=False).loss
            loss.backward()
            if replicated:
                average_row_gradients(model)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()

        return step

    world = arms.world
    contestants: dict[str, tuple[Step, bool]] = {
        "1 GPU": (_nothing if arms.rank else arm("hbm", together=False), False),
        f"{world} GPUs, rows sharded": (arm("shard", together=True), True),
        f"{world} GPUs, rows on each": (arm("hbm", together=True), True),
        "1 GPU, no memory": (_nothing if arms.rank else arm(None, together=False), False),
        f"{world} GPUs, no memory": (arm(None, together=True), True),
    }
    arms.measure(
        f"a Llama of 135 M parameters, memory of 2 x {16 * MODEL_ROWS:,} rows of {DIM} float32",
        "All of the model is trained: bfloat16 autocast, DistributedDataParallel, AdamW for the "
        "model and RowwiseAdam for the rows. `rows on each` is average_row_gradients; ratios are "
        "to the first row; compare those without a memory with each other.",
        contestants,
    )


def _nothing(turn: int) -> None:
    """Take no step."""


def most_rows(arms: Arms) -> dict[str, Any]:
    """Steps on the most rows that one GPU trains with RowwiseAdam, then on as many a GPU more."""
    device, row_bytes = arms.device, 12 * DIM
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 2**22
    spare = 4 * 2**30 if device.type == "cuda" else 0  # vectors, gradients, the sort of a step
    least = torch.tensor([(free - spare) // row_bytes], device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    one = int(least)
    found: dict[str, Any] = {"bytes_a_row": row_bytes, "rows_of_1_gpu": one}
    for world in (1, arms.world):
        layout = a_layout(one * world // 16 - 2000 if HAS_GPU else 200, (1,))
        hashed = hash_tensors(layout, (1,), device=device)
        height = hashed.heights[0]
        seconds = peak = 0.0
        if arms.rank < world:
            own = count_at(height, arms.rank, world)
            weight = torch.empty(own, DIM, device=device).uniform_(-0.02, 0.02)
            table = ShardedRows(weight, height) if world > 1 else nn.Parameter(weight)
            parameter = table.weight if isinstance(table, ShardedRows) else table
            optimiser = RowwiseAdam([parameter], lr=1e-3)
            before = weight[:: max(own // 997, 1)].clone()
            for turn in range(4):
                ids = torch.randint(0, VOCABULARY, (8, TOKENS // 8), device=device)
                begin = time.perf_counter()
                if isinstance(table, ShardedRows):
                    out = look_up([table], ops.find_rows(hashed, ids))
                else:
                    out = ops.look_up(hashed, ids, [Table(values=table, gradients="sparse")])
                out.square().sum().backward()
                optimiser.step()
                optimiser.zero_grad()
                total = float(out.detach().sum())  # waits
                seconds = time.perf_counter() - begin
                assert np.isfinite(total), turn
            state = optimiser.state[parameter]
            held = weight.nbytes + state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes
            if device.type == "cuda":
                peak = torch.cuda.max_memory_allocated()
            moved = int((weight[:: max(own // 997, 1)] != before).any(1).sum())
            found[f"{world} GPUs" if world > 1 else "1 GPU"] = {
                "rows": height,
                "bytes_of_rows_and_state": height * row_bytes,
                "bytes_held_here": held,
                "peak_bytes_here": peak,
                "seconds_of_the_last_step": round(seconds, 4),
                "rows_of_a_sample_that_moved": moved,
            }
            del weight, table, parameter, optimiser, state, before, out
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        arms.wait()
    return found


def process(rank: int, world: int, out: str, folder: str) -> None:
    """Measure in one of the processes; the first one writes `out`."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if HAS_GPU:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(rank)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    method = f"file://{folder}/meet"
    backend = "nccl" if HAS_GPU else "gloo"
    dist.init_process_group(
        backend,
        init_method=method,
        rank=rank,
        world_size=world,
        device_id=device if HAS_GPU else None,
    )
    arms = Arms(rank, device)
    result: dict[str, Any] = {
        "benchmark": "gpu_training_processes",
        "about": (__doc__ or "").strip().splitlines()[0],
        "notes": NOTE,
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if HAS_GPU else {}),
        "versions": versions(),
        "commit": commit(),
        "cases": arms.cases,
    }
    parts: dict[str, Callable[[], Any]] = {
        "rows alone, Adagrad": lambda: rows_alone(arms, RowwiseAdagrad),
        "with a model": lambda: with_model(arms, Path(folder)),
        "most rows": lambda: most_rows(arms),
        "rows alone, Adam": lambda: rows_alone(arms, RowwiseAdam),
    }
    for name, part in parts.items():
        try:
            found = part()
        except Exception:  # every part is reported, whatever fails
            print(f"rank {rank}, {name}:\n{traceback.format_exc()}", flush=True)
            found = None
        if found and not rank:
            print(f"{name}: {json.dumps(found, indent=1)}", flush=True)
            result["most_rows"] = found
        if HAS_GPU:
            torch.cuda.empty_cache()
        if not rank:
            Path(out).write_text(json.dumps(result, indent=1) + "\n")
    dist.destroy_process_group()


def main(out: Path) -> None:
    """Measure on all GPUs of the machine, and write the figures to `out`."""
    world = torch.cuda.device_count() if HAS_GPU else 2
    with tempfile.TemporaryDirectory(dir="/dev/shm" if HAS_GPU else None) as folder:
        torch.multiprocessing.spawn(process, (world, str(out), folder), nprocs=world)
