"""The section of docs/quality.md on pretrained models, from pretrained.json."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOMAINS = {"docs": "manuals", "python": "Python code", "third": "quotations"}
RATES = ("rate", "dense", "rows")
ALONE = "model alone"  # as `engram evaluate` calls what the files call bare
LORA, BOTH = "LoRA r=64", "LoRA r=64 and memory"
GENTLE = "LoRA r=64, lower rate, and memory"
MEMORY = "memory, next-token rows"
EIGHT = "memory at 8 layers"
FROZEN = f"{MEMORY} frozen"
TIMED = f"{MEMORY}, equal time"
Training = dict[str, Any]


class Found:
    """The trainings of one model in one domain, each method at its best rates and layers."""

    def __init__(self, model: str, domain: str) -> None:
        found = json.loads((HERE / model).read_text())
        self.found, self.domain = found, domain
        compiled = [t for t in found["trainings"] if t["compiled"]]
        # Rates and layers were swept on the manuals.
        chosen = {arm for arm in _groups(compiled, "docs") if _is_best(arm, compiled)}
        groups = _groups(compiled, domain)
        self.best = {arm[0]: group for arm, group in groups.items() if arm in chosen}
        self.compiled = compiled
        # The model as it was is the same in each domain.
        self.bare = next(t for t in compiled if t["name"] == "bare")["held"]

    def mean(self, name: str, domain: str) -> float:
        """Held-out loss of a method in a domain, the mean over its seeds."""
        return statistics.mean(t["held"][domain] for t in self.best[name])

    def loss(self, name: str) -> float:
        return self.mean(name, self.domain)

    def forgot(self, name: str) -> float:
        """By how much a method raised the loss on Python code."""
        return self.mean(name, "python") - self.bare["python"]

    def less(self, name: str, rival: str) -> str:
        """By how much a method's loss is lower than its rival's, from the least to the most."""
        return _spread([a - b for a, b in zip(*self.pairs(rival, name, self.domain), strict=True)])

    def more(self, name: str, rival: str, domain: str) -> str:
        """By how much a method's loss in another domain is higher than its rival's."""
        return _spread([a - b for a, b in zip(*self.pairs(name, rival, domain), strict=True)], "+")

    def pairs(self, name: str, other: str, domain: str) -> tuple[list[float], list[float]]:
        """Losses of two methods on the seeds that both have."""
        losses = [
            {t["seed"]: t["held"][domain] for t in self.best[method]} for method in (name, other)
        ]
        seeds = sorted(losses[0].keys() & losses[1].keys())
        return [losses[0][s] for s in seeds], [losses[1][s] for s in seeds]

    def losses(self) -> str:
        """The table of all methods, from the highest loss to the lowest."""
        others = [domain for domain in DOMAINS if domain != self.domain]
        seeds = sorted({t["seed"] for group in self.best.values() for t in group})
        header = ["method", *(f"seed {seed}" for seed in seeds), "gain"]
        header += [*(DOMAINS[domain] for domain in others), "step"]
        lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
        bare = [ALONE, f"{self.bare[self.domain]:.3f}"]
        lines.append(bare + [""] * (len(header) - len(bare)))
        groups = [group for name, group in self.best.items() if name != "bare"]
        for group in sorted(groups, key=lambda group: -group[0]["held"][self.domain]):
            own = {t["seed"]: t["held"][self.domain] for t in group}
            losses = [f"{own[seed]:.3f}" if seed in own else "" for seed in seeds]
            means = [
                statistics.mean(t["held"][d] - self.bare[d] for t in group)
                for d in (self.domain, *others)
            ]
            timed = [t["step_ms"] for t in group if t["step_ms"]]
            time = f"{statistics.median(timed):.0f} ms" if timed else ""
            lines.append([_name(group[0]), *losses, *(f"{mean:+.3f}" for mean in means), time])
        return _table(lines)

    def sweeps(self) -> str:
        """Every rate that was tried on seed 0, in the order of the methods."""
        lines = [["method", "rate", "dense", "rows", *DOMAINS.values()]]
        lines.append(["---"] + ["---:"] * 6)
        tried = [t for t in self.found["trainings"] if t["domain"] == self.domain]
        for t in sorted(tried, key=lambda t: (t["name"], len(t["layers"]), not t["compiled"])):
            if t["seed"] == 0 and t["steps"] == 300:
                rates = [f"{t[rate]:g}" if t[rate] else "" for rate in RATES]
                held = [f"{t['held'][d]:.3f}" for d in DOMAINS]
                first = "" if t["compiled"] else ", first run"
                lines.append([_name(t) + first, *rates, *held])
        return _table(lines)


def fields() -> dict[str, Any]:
    """What the template shows of these trainings."""
    manuals, python = (Found("pretrained.json", domain) for domain in ("docs", "python"))
    gemma = Found("pretrained-gemma3.json", "docs")
    slower = next(t for t in gemma.compiled if (t["name"], t["rate"]) == (BOTH, 2.5e-4))
    found, bare = manuals.found, manuals.bare
    lora = manuals.best[LORA][0]
    gains = {name: bare["docs"] - manuals.loss(name) for name in (LORA, MEMORY)}
    steps = {
        name: statistics.median(t["step_ms"] for t in manuals.best[name]) for name in (LORA, MEMORY)
    }
    return {
        "smollm2_losses": manuals.losses(),
        "smollm2_sweeps": manuals.sweeps(),
        "python_losses": python.losses(),
        "gemma_losses": gemma.losses(),
        "gemma_sweeps": gemma.sweeps(),
        "pretrained_kept": 100 * gains[MEMORY] / gains[LORA],
        "pretrained_lora": manuals.loss(LORA),
        "pretrained_memory": manuals.loss(MEMORY),
        "pretrained_forgot": manuals.forgot(MEMORY),
        "pretrained_lora_forgot": manuals.forgot(LORA),
        "pretrained_both": manuals.less(BOTH, LORA),
        "pretrained_both_python": manuals.more(BOTH, LORA, "python"),
        "pretrained_both_third": manuals.more(BOTH, LORA, "third"),
        "pretrained_gentle": manuals.less(GENTLE, LORA),
        "pretrained_gentle_python": manuals.more(GENTLE, LORA, "python"),
        "pretrained_gentle_third": manuals.more(GENTLE, LORA, "third"),
        "pretrained_gentle_rate": f"{manuals.best[GENTLE][0]['rate']:g}",
        "pretrained_eight": manuals.loss(EIGHT),
        "pretrained_eight_timed": manuals.loss(f"{EIGHT}, equal time"),
        "pretrained_eight_steps": manuals.best[f"{EIGHT}, equal time"][0]["steps"],
        "pretrained_eight_both": manuals.loss(f"{GENTLE} at 8 layers"),
        "pretrained_frozen": bare["docs"] - manuals.loss(FROZEN),
        "pretrained_gain": gains[MEMORY],
        "pretrained_timed": manuals.loss(TIMED),
        "pretrained_short": manuals.less(LORA, TIMED),
        "pretrained_equal_steps": manuals.best[TIMED][0]["steps"],
        "pretrained_faster": steps[LORA] / steps[MEMORY],
        "pretrained_peer": manuals.less(MEMORY, "engram-peft"),
        "pretrained_peer_loss": manuals.loss("engram-peft"),
        "pretrained_two_layers": _two_layers(manuals.compiled),
        "python_both": python.less(BOTH, LORA),
        "python_full": python.less(BOTH, "full fine-tuning"),
        "python_kept": 100
        * (bare["python"] - python.loss(MEMORY))
        / (bare["python"] - python.loss(LORA)),
        "gemma_both": gemma.less(BOTH, LORA),
        "gemma_short": gemma.less(LORA, MEMORY),
        "gemma_both_forgot": gemma.forgot(BOTH),
        "gemma_gentle": gemma.loss(LORA) - slower["held"]["docs"],
        "gemma_gentle_forgot": slower["held"]["python"] - gemma.bare["python"],
        "gemma_peer": gemma.less(MEMORY, "engram-peft"),
        "gemma_forgot": gemma.forgot(MEMORY),
        "gemma_lora_forgot": gemma.forgot(LORA),
        "pretrained_docs": found["data"]["docs-train"]["tokens"] / 1e6,
        "pretrained_held": found["data"]["docs-held"]["tokens"],
        "pretrained_machine": found["machine"],
        "pretrained_versions": ", ".join(f"{n} {v}" for n, v in found["versions"].items()),
        "pretrained_epochs": lora["steps"]
        * lora["batch"]
        * 512
        / found["data"]["docs-train"]["tokens"],
    }


def _groups(trainings: list[Training], domain: str) -> dict[tuple[Any, ...], list[Training]]:
    """Trainings that differ in their seed alone, by name, layers, steps and rates."""
    groups: dict[tuple[Any, ...], list[Training]] = {}
    for t in trainings:
        if t["domain"] == domain:
            arm = (t["name"], tuple(t["layers"]), t["steps"], *(t[rate] for rate in RATES))
            groups.setdefault(arm, []).append(t)
    return groups


def _is_best(arm: tuple[Any, ...], trainings: list[Training]) -> bool:
    """Whether no other rates or layers of that name have a lower loss, on seed 0."""
    losses = {
        other: group[0]["held"]["docs"]
        for other, group in _groups(trainings, "docs").items()
        if other[0] == arm[0]
    }
    return min(losses, key=lambda other: losses[other]) == arm


def _name(t: Training) -> str:
    layers = f" (layers {', '.join(map(str, t['layers']))})" if t["layers"] else ""
    steps = f", {t['steps']} steps" if t["name"].endswith("equal time") else ""
    return f"{t['name'].replace(' at 8 layers', '')}{layers}{steps}"


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: list[float], sign: str = "") -> str:
    low, high = min(values), max(values)
    if f"{low:.3f}" == f"{high:.3f}":
        return f"{low:{sign}.3f}"
    return f"{low:{sign}.3f} to {high:{sign}.3f}"


def _two_layers(trainings: list[Training]) -> float:
    """The lowest loss of a memory at two layers."""
    two = [t for t in trainings if t["name"] == MEMORY and len(t["layers"]) == 2]
    return float(min(t["held"]["docs"] for t in two if t["seed"] == 0))
