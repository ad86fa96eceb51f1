"""Is a memory worth attaching? Small decoders with and without one, at equal steps and data.

    python tests/benchmarks/quality/run.py DATA OUT [--seconds 500]

DATA is what prepare.py wrote; OUT gets quality.json, written again after each training, and the
artifacts of the engram commands. Trainings run in the order of `PLAN` until the time is up.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import Size, Trained, evaluate, load_ids, new_model, remember, train

from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.compress_vocab import CompressVocabRequest, run_compress_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.init_corpus import FillRequest
from engram_cli.commands.workspace import Workspace

LAYERS = (1, 4)
GEOMETRY = Geometry(orders=(2, 3), heads=8, rows_per_head=(2**18,), layers=LAYERS)
DIM = 32  # 16 columns of 32 values: as wide as the hidden state
# The dense parameters of both memories, spent on wider inner layers instead: 3 x 512 x 8 a unit.
WIDER = 86


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A training. `start`: "scratch", or "bare": go on from the bare model of the same seed."""

    name: str
    init: str | None = None
    frozen: bool = False
    wider: bool = False
    start: str = "scratch"


SCRATCH = (
    Arm(name="bare"),
    Arm(name="bare, wider", wider=True),
    Arm(name="memory, random rows", init="normal"),
)
GO_ON = (
    Arm(name="bare", start="bare"),
    Arm(name="memory, random rows", init="normal", start="bare"),
    Arm(name="memory, random rows frozen", init="normal", frozen=True, start="bare"),
    Arm(name="memory, next-token rows", init="next-token", start="bare"),
    Arm(name="memory, next-token rows frozen", init="next-token", frozen=True, start="bare"),
    Arm(name="memory, token-mean rows", init="token-mean", start="bare"),
    Arm(name="memory, token-mean rows frozen", init="token-mean", frozen=True, start="bare"),
)
PLAN = [(0, SCRATCH), (0, GO_ON), (1, SCRATCH), (1, GO_ON), (2, SCRATCH), (2, GO_ON)]


class Experiment:
    """The data, the artifacts, and what was found so far."""

    def __init__(self, data: Path, out: Path, size: Size, steps: int, device: torch.device) -> None:
        self.data, self.out, self.size, self.steps, self.device = data, out, size, steps, device
        self.train_ids = load_ids(data / "train.u16.xz", device)
        self.held_out = load_ids(data / "heldout.u16.xz", device)
        self.results: list[dict[str, Any]] = []
        np.save(out / "train.npy", self.train_ids.cpu().numpy().astype(np.uint16))
        run_compress_vocab(
            CompressVocabRequest(
                source=data / "tokenizer.json", workspace=Workspace(out), force=True
            )
        )

    def run(self, arm: Arm, seed: int) -> None:
        """Train one arm and keep what came out."""
        size, go_on = self.size, arm.start == "bare"
        model = new_model(size, seed, self.device, WIDER if arm.wider else 0)
        bare = self.out / f"bare-{seed}"
        if go_on:
            model.load_state_dict(torch.load(bare / "weights.pt", weights_only=True))
        plain = sum(p.numel() for p in model.parameters())
        if arm.init is not None:
            remember(model, self.bundle(arm.init, seed if go_on else None), frozen=arm.frozen)
        before = evaluate(model, size, self.held_out) if go_on else None
        trained = train(
            model,
            replace(size, rate=size.rate / 2) if go_on else size,
            self.train_ids,
            self.held_out,
            steps=self.steps // 2 if go_on else self.steps,
            first=self.steps if go_on else 0,
            seed=seed,
        )
        if arm == SCRATCH[0]:
            save(model, bare, self.data / "tokenizer.json")
        self.note(arm, seed, trained, plain, model, before)

    def bundle(self, init: str, seed: int | None) -> Path:
        """The bundle with rows by `init`; those from a corpus read the bare model of `seed`."""
        filled = init in ("next-token", "token-mean")
        name = f"{init}-{seed}" if filled else init
        checkpoint = self.out / (f"bare-{seed}" if filled else "shape")
        bundle = self.out / f"bundle-{name}"
        if bundle.exists():
            return bundle
        if not checkpoint.exists():
            save(new_model(self.size, 0, self.device), checkpoint, self.data / "tokenizer.json")
        corpus = FillRequest(sources=(self.out / "train.npy",), checkpoint=checkpoint)
        make_bundle(self.out, bundle, checkpoint, GEOMETRY, DIM, init, corpus if filled else None)
        return bundle

    def note(
        self,
        arm: Arm,
        seed: int,
        trained: Trained,
        plain: int,
        model: torch.nn.Module,
        before: float | None,
    ) -> None:
        """Keep the figures of a training, and write them all."""
        memory = getattr(model, "engram", None)
        parts = {} if memory is None else dict(memory.named_parameters())
        rows = sum(p.numel() for name, p in parts.items() if name.endswith("embedding.weight"))
        self.results.append(
            {
                **asdict(arm),
                "seed": seed,
                "parameters": plain,
                "memory_dense": sum(p.numel() for p in parts.values()) - rows,
                "memory_rows": rows,
                "held_out_before": before,
                **asdict(trained) | {"losses": trained.losses[::10]},
            }
        )
        line = f"{arm.start:8} {arm.name:34} seed {seed}: {trained.held_out:.4f}"
        print(f"{line}  ({trained.seconds:.0f} s, before {before})", flush=True)
        (self.out / "quality.json").write_text(json.dumps(self.document(), indent=1) + "\n")

    def document(self) -> dict[str, Any]:
        """All of it, as it is kept."""
        cuda = self.device.type == "cuda"
        return {
            "benchmark": "quality",
            "machine": torch.cuda.get_device_name() if cuda else "cpu",
            "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
            "size": asdict(self.size),
            "geometry": {**GEOMETRY.given, "dim": DIM},
            "steps": self.steps,
            "train_tokens": len(self.train_ids),
            "held_out_tokens": len(self.held_out),
            "trainings": self.results,
        }


def make_bundle(
    workspace: Path,
    bundle: Path,
    checkpoint: Path,
    geometry: Geometry,
    dim: int,
    init: str = "normal",
    fill: FillRequest | None = None,
) -> None:
    """A table with rows by `init`, as a bundle for `checkpoint`."""
    table = bundle.with_suffix(".zarr")
    build_table(
        BuildTableRequest(
            geometry=geometry,
            vocab=Workspace(workspace).vocab,
            out=table,
            dim=dim,
            dtype="float32",
            init=init,
            fill=fill,
        )
    )
    attach_checkpoint(AttachRequest(checkpoint=checkpoint, table=table, out=bundle))


def save(model: torch.nn.Module, folder: Path, tokenizer: Path) -> None:
    """A checkpoint folder as published ones look, and the weights for going on."""
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    torch.save(model.state_dict(), folder / "weights.pt")


def begun(
    description: str, *, seconds: float, steps: int
) -> tuple[argparse.Namespace, Size, torch.device]:
    """What a script of trainings was asked for, its folder made, and where it runs."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--tiny", action="store_true", help="to try the script without a GPU")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = Size(batch=4, hidden=64, inner=128, layers=5, heads=2) if arguments.tiny else Size()
    return arguments, size, torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    begin = time.perf_counter()
    arguments, size, device = begun(__doc__, seconds=500.0, steps=480)
    experiment = Experiment(arguments.data, arguments.out, size, arguments.steps, device)
    longest = 0.0
    for seed, arms in PLAN:
        for arm in arms:
            now = time.perf_counter()
            if now - begin + longest > arguments.seconds:
                print("the time is up", flush=True)
                return
            try:
                experiment.run(arm, seed)
            except torch.OutOfMemoryError as error:
                print(f"{arm.name}: {error}", flush=True)
            longest = max(longest, time.perf_counter() - now)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
