"""Does a memory help a pretrained model? Against LoRA, full fine-tuning and engram-peft.

    python tests/benchmarks/quality/pretrained.py CHECKPOINT DATA OUT --plan smollm2 [--seconds 900]

DATA is what pretrained_data.py wrote for CHECKPOINT. Trainings run on every GPU there is, one at a
time on each, or --workers at a time: the losses are the same then, and no step time is taken.
First rates are swept on one seed; then every method runs with its best rate on three seeds and
both domains; then sizes and layers are varied. OUT/results.jsonl has a line per training, written
when it ends.
"""

from __future__ import annotations

import argparse
import gc
import json
import lzma
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from pretrained_arms import Arm, World, bundle_name

from engram_cli.commands.attach.command import attach_checkpoint
from engram_cli.commands.build_table import build_table
from engram_cli.commands.compress_vocab import run_compress_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.corpus import CompressVocabRequest, FillRequest
from engram_cli.commands.requests.tables import AttachRequest, BuildTableRequest
from engram_cli.commands.workspace import Workspace

SEEDS = (0, 1, 2)
DIM = 32
EIGHT = (2, 5, 8, 11, 14, 17, 20, 23)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--plan", choices=sorted(PLANS), required=True)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time on each GPU")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in arguments.data.glob("*.npy.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
    torch.set_float32_matmul_precision("high")
    with Pool(arguments) as pool:
        PLANS[arguments.plan](pool)


class Pool:
    """Workers for each GPU, and what they found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.begin = arguments, time.time()
        self.out, self.bundles = arguments.out, arguments.out / "bundles"
        self.done: dict[Arm, dict[str, Any]] = {}
        self.bundles.mkdir(exist_ok=True)
        self.read()
        workers = max(torch.cuda.device_count(), 1) * arguments.workers
        context = multiprocessing.get_context("spawn")
        numbers = context.Queue()
        for number in range(workers):
            numbers.put(number // arguments.workers)
        self.pool = context.Pool(
            workers,
            initializer=begin_worker,
            initargs=(numbers, self.bundles, self.begin + arguments.seconds, arguments),
        )

    def read(self) -> None:
        """Take over what an earlier run found; its failures run again."""
        path = self.out / "results.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            found = json.loads(line)
            fields_of = {name: found.pop(name) for name in Arm.__dataclass_fields__}
            if "held" in found:
                self.done[Arm(**fields_of | {"layers": tuple(fields_of["layers"])})] = found

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.terminate()

    def run(self, arms: Sequence[Arm]) -> list[Arm]:
        """Run those arms that did not run yet, as time allows; gives those with a result."""
        new = [arm for arm in dict.fromkeys(arms) if arm not in self.done]
        for arm, found in self.pool.imap_unordered(run_in_worker, self.with_bundles(new)):
            self.done[arm] = found
            line = json.dumps({**asdict(arm), **found})
            with (self.out / "results.jsonl").open("a") as lines:
                lines.write(line + "\n")
            held = found.get("held", found.get("error"))
            seconds = time.time() - self.begin
            print(f"{seconds:5.0f} s {line_of(arm)}: {held} {found.get('step_ms')} ms", flush=True)
        return [arm for arm in arms if "held" in self.done.get(arm, {})]

    def with_bundles(self, arms: Sequence[Arm]) -> Iterator[Arm]:
        """The arms, each once its bundle is there; the workers train while the next one is made."""
        for arm in arms:
            in_time = time.time() < self.begin + self.arguments.seconds
            if in_time and arm.memory not in ("", "peft"):
                self.bundle(arm)
            yield arm

    def best(self, arms: Sequence[Arm]) -> Arm | None:
        """The arm with the lowest held-out loss in its own domain."""
        ran = self.run(arms)
        return min(ran, key=lambda arm: self.done[arm]["held"][arm.domain], default=None)

    def step_ms(self, arm: Arm) -> float:
        """Median step time of an arm's method over its timed trainings, at any rate or seed."""
        return statistics.median(
            found["step_ms"]
            for other, found in self.done.items()
            if (other.name, other.layers) == (arm.name, arm.layers) and found.get("step_ms")
        )

    def bundle(self, arm: Arm) -> None:
        """Make the bundle that an arm attaches, if it is not there."""
        bundle = self.bundles / bundle_name(arm)
        if bundle.exists():
            return
        arguments = self.arguments
        workspace = Workspace(self.bundles)
        if not workspace.vocab.exists():
            run_compress_vocab(
                CompressVocabRequest(
                    source=arguments.checkpoint / "tokenizer.json", workspace=workspace
                )
            )
        corpus = FillRequest(
            sources=(arguments.data / f"{arm.domain}-train.npy",), checkpoint=arguments.checkpoint
        )
        table = bundle.with_name(bundle.name + ".zarr")
        build_table(
            BuildTableRequest(
                geometry=Geometry(
                    orders=(2, 3), heads=8, rows_per_head=(arm.rows_per_head,), layers=arm.layers
                ),
                vocab=workspace.vocab,
                out=table,
                dim=DIM,
                dtype="float32",
                init=arm.memory,
                fill=corpus if arm.memory == "next-token" else None,
            )
        )
        attach_checkpoint(
            AttachRequest(checkpoint=arguments.checkpoint, table=table, out=bundle, at=arm.layers)
        )


def begin_worker(numbers: Any, bundles: Path, end: float, arguments: argparse.Namespace) -> None:
    global world, until, scale, shared
    number = numbers.get()
    device = torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    world = World(arguments.checkpoint, arguments.data, bundles, device)
    until, scale, shared = end, arguments.steps / 300, arguments.workers > 1


def run_in_worker(arm: Arm) -> tuple[Arm, dict[str, Any]]:
    """Train an arm unless the time is up; an error is a result, so that the others go on."""
    if time.time() > until:
        return arm, {"error": "the time was up"}
    try:
        found = world.run(replace(arm, steps=round(arm.steps * scale)))
        if shared:
            found["step_ms"] = None
    except Exception:
        found = {"error": traceback.format_exc()[-2000:]}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return arm, found


def line_of(arm: Arm) -> str:
    rates = "/".join(f"{rate:g}" for rate in (arm.rate, arm.dense, arm.rows) if rate)
    return f"{arm.name} {arm.domain} seed {arm.seed} {arm.steps} steps, rates {rates}"


def sweep(arm: Arm, **rates: Sequence[float]) -> list[Arm]:
    """The arm with every combination of rates."""
    arms = [arm]
    for name, values in rates.items():
        arms = [replace(arm, **{name: value}) for arm in arms for value in values]
    return arms


RIVAL = "LoRA r=64"


def compared(
    pool: Pool, methods: dict[str, list[Arm]], plan: Sequence[tuple[str, int, Sequence[str]]]
) -> dict[str, Arm]:
    """Sweep each method's rates, then run (domain, seeds, methods) of the plan at the best rates.

    "memory, equal time" is the memory for as long as the rival took. Gives the best arms.
    """
    pool.run([arm for arms in methods.values() for arm in arms])
    chosen = {name: best for name, arms in methods.items() if (best := pool.best(arms))}
    if "memory" in chosen and RIVAL in chosen:
        chosen["equal time"] = in_time_of(pool, chosen["memory"], chosen[RIVAL])
    repeated(pool, chosen, plan)
    return chosen


def repeated(
    pool: Pool, chosen: dict[str, Arm], plan: Sequence[tuple[str, int, Sequence[str]]]
) -> None:
    """Run (domain, seeds, methods) of the plan with the methods' chosen arms, in that order."""
    pool.run(
        [
            replace(chosen[name], domain=domain, seed=seed)
            for domain, seeds, names in plan
            for seed in SEEDS[:seeds]
            for name in names
            if name in chosen
        ]
    )


def in_time_of(pool: Pool, arm: Arm, rival: Arm) -> Arm:
    """An arm with as many steps as the rival's training takes."""
    ratio = pool.step_ms(rival) / pool.step_ms(arm)
    return replace(arm, name=f"{arm.name}, equal time", steps=round(rival.steps * ratio))


def smollm2(pool: Pool) -> None:
    """Every method, both domains; layers and sizes."""
    four = (2, 8, 14, 20)
    memory = Arm(name="memory, next-token rows", memory="next-token", layers=(2, 14))
    random = replace(memory, name="memory, random rows", memory="normal")
    frozen = replace(memory, name="memory, next-token rows frozen", frozen=True)
    both = replace(memory, name="LoRA r=64 and memory", lora=64)
    smaller = replace(memory, name="LoRA r=16 and memory", lora=16)
    peer = Arm(name="engram-peft", memory="peft", layers=(2, 14))
    methods = {
        RIVAL: sweep(Arm(name=RIVAL, lora=64), rate=(1e-3, 2e-3, 4e-3)),
        "peft": sweep(peer, rate=(2e-3, 6e-3, 2e-2)),
        "both": [
            *sweep(both, rate=(2e-3,), dense=(3e-3,), rows=(1e-1,)),
            *sweep(replace(both, layers=four), rate=(2e-3,), dense=(3e-3,), rows=(1e-1,)),
        ],
        "memory": [
            *sweep(memory, dense=(3e-3, 1e-2), rows=(3e-2, 1e-1)),
            *sweep(replace(memory, layers=four), dense=(3e-3,), rows=(1e-1,)),
        ],
        "bare": [Arm(name="bare", steps=0)],
        "full": sweep(Arm(name="full fine-tuning", full=True), rate=(1e-4, 3e-4)),
        "LoRA r=16": sweep(Arm(name="LoRA r=16", lora=16), rate=(4e-3,)),
        "smaller": sweep(smaller, rate=(2e-3, 4e-3), dense=(3e-3,), rows=(3e-2,)),
        "random": sweep(random, dense=(1e-2,), rows=(3e-2, 1e-1)),
    }
    main = (RIVAL, "both", "memory", "equal time", "peft", "full")
    chosen = compared(
        pool,
        methods,
        [
            ("docs", 3, main[:3]),
            ("python", 1, ("bare", *main)),
            ("docs", 3, main[3:]),
        ],
    )
    gentle = replace(both, name="LoRA r=64, lower rate, and memory", layers=four)
    rates = sweep(gentle, rate=(1e-3, 1.5e-3), dense=(3e-3,), rows=(1e-1,))
    pool.run([*rates, *sweep(replace(frozen, layers=four), dense=(3e-3, 1e-2))])
    pool.run([replace(rates[-1], seed=seed) for seed in SEEDS])
    pool.run(
        [replace(rates[-1], name="LoRA r=64, lower rate, and memory at 8 layers", layers=EIGHT)]
    )
    repeated(pool, chosen, [("python", 3, main[:3])])
    if "memory" in chosen:
        variants(pool, chosen["memory"], ((2,), (14,), (0, 14)))
    others = ("LoRA r=16", "random", "smaller")
    repeated(pool, chosen, [("docs", 3, others), ("python", 3, main[3:])])


def smollm2_timed(pool: Pool) -> None:
    """A memory at eight layers, in the same steps and in the rival's time: takes one worker."""
    eight = Arm(name="memory at 8 layers", memory="next-token", layers=EIGHT, dense=3e-3, rows=1e-1)
    if pool.run([eight]) and pool.run(rival := sweep(Arm(name=RIVAL, lora=64), rate=(2e-3,))):
        pool.run([in_time_of(pool, eight, rival[0])])


def trial(pool: Pool) -> None:
    """Each kind of training once, to try the script."""
    memory = Arm(name="memory", memory="next-token", layers=(2, 8), dense=3e-3, rows=5e-3)
    pool.run(
        [
            Arm(name="bare", steps=0),
            memory,
            replace(memory, name="random", memory="normal"),
            replace(memory, name="frozen", frozen=True),
            replace(memory, name="both", lora=16, rate=2e-3),
            Arm(name="LoRA", lora=16, rate=2e-3),
            Arm(name="full", full=True, rate=1e-4),
            Arm(name="engram-peft", memory="peft", layers=(2, 8), rate=2e-3),
        ]
    )


def gemma3(pool: Pool) -> None:
    """The main methods on one domain, with half the tokens a step."""
    memory = Arm(name="memory, next-token rows", memory="next-token", layers=(2, 8), batch=16)
    four = replace(memory, layers=(2, 6, 10, 14))
    peer = Arm(name="engram-peft", memory="peft", layers=(2, 8), batch=16)
    both = replace(four, name="LoRA r=64 and memory", lora=64)
    methods = {
        "bare": [Arm(name="bare", steps=0, batch=16)],
        "both": sweep(both, rate=(2e-3, 1e-3, 5e-4, 2.5e-4), dense=(3e-3,), rows=(1e-1,)),
        RIVAL: sweep(Arm(name=RIVAL, lora=64, batch=16), rate=(2e-3, 1e-3, 5e-4, 2.5e-4)),
        "memory": sweep(four, dense=(3e-3, 1e-2), rows=(1e-1,)),
        "peft": sweep(peer, rate=(6e-3,)),
    }
    compared(pool, methods, [("docs", 3, (RIVAL, "both", "memory", "equal time"))])
    full = Arm(name="full fine-tuning", full=True, batch=16)
    pool.run([*sweep(memory, dense=(3e-3,), rows=(1e-1,)), *sweep(full, rate=(1e-4, 3e-4, 3e-5))])


def variants(pool: Pool, best: Arm, places: Sequence[tuple[int, ...]]) -> None:
    """The best memory at other layers, and with a quarter to four times the rows."""
    sizes = (50_000, 100_000, 400_000, 800_000)
    pool.run(
        [replace(best, name=f"memory at {place}", layers=place) for place in places]
        + [replace(best, name=f"memory, {n} rows", rows_per_head=n) for n in sizes]
    )


PLANS: dict[str, Callable[[Pool], None]] = {
    "smollm2": smollm2,
    "smollm2-timed": smollm2_timed,
    "gemma3": gemma3,
    "trial": trial,
}

if __name__ == "__main__":
    main()
