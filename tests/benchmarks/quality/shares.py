"""How much of the parameters that a token does not read should be memory, how much experts?

    python tests/benchmarks/quality/shares.py DATA OUT [--seconds 150]

DATA is what prepare.py wrote; OUT gets shares.json, written again after each training; what is in
it already is not trained again. All models have the same parameters in all; each token reads the
same layers and `TAKEN` experts.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from experts import Experts
from run import DIM, GEOMETRY, Experiment, begun, make_bundle, save
from torch import nn
from training import new_model, remember, train

TAKEN = 2
SLOTS = 14  # experts a layer beyond those that a token takes: the budget
# (slots of the budget that are memory, seed), in the order of the trainings.
PLAN = ((0, 0), (7, 0), (3, 0), (14, 0), (3, 1), (7, 1), (0, 1), (14, 1))


class Shares(Experiment):
    """Trainings of one budget, each with another part of it as memory."""

    def run_share(self, part: int, seed: int) -> None:
        """Train with `part` of SLOTS as memory and keep what came out."""
        model = new_model(self.size, seed, self.device)
        experts = self._replace(model, TAKEN + SLOTS - part, seed)
        plain = sum(p.numel() for p in model.parameters())
        if part:
            remember(model, self._bundle(part), frozen=False)
        trained = train(
            model, self.size, self.train_ids, self.held_out, steps=self.steps, seed=seed
        )
        memory = {n: p.numel() for n, p in model.named_parameters() if n.startswith("engram.")}
        rows = sum(count for name, count in memory.items() if name.endswith("embedding.weight"))
        idle = sum((e.up.numel() + e.down.numel()) // len(e.bias) for e in experts) * (SLOTS - part)
        found = {
            "part": part,
            "seed": seed,
            "experts": TAKEN + SLOTS - part,
            "parameters": plain + sum(memory.values()),
            "idle_experts": idle,
            "memory_rows": rows,
            "memory_dense": sum(memory.values()) - rows,
            "busiest": round(max(float(e.load.max()) for e in experts), 3),
            **asdict(trained) | {"losses": trained.losses[::10]},
        }
        self.results.append(found)
        print(f"{part}/{SLOTS} memory, seed {seed}: {trained.held_out:.4f}", found, flush=True)
        document = self.document() | {"benchmark": "shares", "taken": TAKEN, "slots": SLOTS}
        (self.out / "shares.json").write_text(json.dumps(document, indent=1) + "\n")

    def _replace(self, model: nn.Module, count: int, seed: int) -> list[Experts]:
        """Experts for the inner layers: those that a token takes are as large as the layer was."""
        torch.manual_seed(seed)
        size = self.size
        layers: Any = model.model.layers
        for layer in layers:
            own = Experts(size.hidden, size.inner // TAKEN, count, TAKEN)
            layer.mlp = own.to(self.device)
        return [layer.mlp for layer in layers]

    def _bundle(self, part: int) -> Path:
        """A bundle whose rows and dense weights are `part` slots' parameters."""
        bundle, shape = self.out / f"bundle-{part}", self.out / "shape"
        if not bundle.exists():
            if not shape.exists():
                save(new_model(self.size, 0, self.device), shape, self.data / "tokenizer.json")
            hidden = self.size.hidden
            slot = 3 * hidden * (self.size.inner // TAKEN) * self.size.layers
            width, layers = len(GEOMETRY.orders) * GEOMETRY.heads * DIM, len(GEOMETRY.layers)
            dense = layers * (2 * width * hidden + 9 * hidden)  # projections, norms, taps, biases
            rows = (part * slot - dense) // (layers * width)
            make_bundle(self.out, bundle, shape, replace(GEOMETRY, rows_per_head=(rows,)), DIM)
        return bundle


def main() -> None:
    begin = time.perf_counter()
    arguments, size, device = begun(__doc__, seconds=150.0, steps=300)
    shares = Shares(arguments.data, arguments.out, size, arguments.steps, device)
    if (arguments.out / "shares.json").exists():
        shares.results = json.loads((arguments.out / "shares.json").read_text())["trainings"]
    known = {(found["part"], found["seed"]) for found in shares.results}
    longest = 0.0
    for part, seed in PLAN:
        now = time.perf_counter()
        if now - begin + longest > arguments.seconds:
            print("the time is up", flush=True)
            return
        if (part, seed) not in known:
            shares.run_share(part, seed)
            longest = max(longest, time.perf_counter() - now)


if __name__ == "__main__":
    main()
