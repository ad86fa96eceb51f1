"""The section of docs/quality.md on pretrained models, from pretrained.json."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

FOUND = Path(__file__).parent / "pretrained.json"
DOMAINS = ("docs", "python", "third")
RATES = ("rate", "dense", "rows")


def fields() -> dict[str, Any]:
    """What the template shows of these trainings."""
    found = json.loads(FOUND.read_text())
    compiled = [t for t in found["trainings"] if t["compiled"]]
    best = {arm: group for arm, group in _groups(compiled).items() if _is_best(arm, compiled)}
    first = {name: next(t for t in group if t["seed"] == 0) for (name, *_), group in best.items()}
    bare = first["bare"]["held"]
    lora, both, memory = (first[n] for n in (LORA, BOTH, MEMORY))
    data = found["data"]
    return {
        "pretrained_losses": _losses(best, bare),
        "pretrained_sweeps": _sweeps(found["trainings"]),
        "pretrained_bare": bare["docs"],
        "pretrained_lora": lora["held"]["docs"],
        "pretrained_memory": memory["held"]["docs"],
        "pretrained_kept": 100 * _gain(memory, bare) / _gain(lora, bare),
        "pretrained_forgot": memory["held"]["python"] - bare["python"],
        "pretrained_lora_forgot": lora["held"]["python"] - bare["python"],
        "pretrained_both": _spread(best, BOTH, LORA),
        "pretrained_both_third": both["held"]["third"] - lora["held"]["third"],
        "pretrained_equal_time": first[f"{MEMORY}, equal time"]["held"]["docs"],
        "pretrained_equal_steps": first[f"{MEMORY}, equal time"]["steps"],
        "pretrained_faster": _step(best, LORA) / _step(best, MEMORY),
        "pretrained_peer": first["engram-peft"]["held"]["docs"],
        "pretrained_two_layers": _two_layers(compiled),
        "pretrained_docs": data["docs-train"]["tokens"] / 1e6,
        "pretrained_held": data["docs-held"]["tokens"],
        "pretrained_machine": found["machine"],
        "pretrained_versions": ", ".join(f"{n} {v}" for n, v in found["versions"].items()),
        "pretrained_epochs": lora["steps"] * lora["batch"] * 512 / data["docs-train"]["tokens"],
    }


LORA, BOTH = "LoRA r=64", "LoRA r=64 and memory"
MEMORY = "memory, next-token rows"


def _groups(trainings: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Trainings that differ in their seed alone, by name, layers, steps and rates."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for t in trainings:
        arm = (t["name"], tuple(t["layers"]), t["steps"], *(t[rate] for rate in RATES))
        groups.setdefault(arm, []).append(t)
    return groups


def _is_best(arm: tuple[Any, ...], trainings: list[dict[str, Any]]) -> bool:
    """Whether no other rates or layers of that name have a lower loss, on seed 0."""
    losses = {
        other: group[0]["held"]["docs"]
        for other, group in _groups(trainings).items()
        if other[0] == arm[0]
    }
    return min(losses, key=lambda other: losses[other]) == arm


def _losses(best: dict[tuple[Any, ...], list[dict[str, Any]]], bare: dict[str, float]) -> str:
    header = ["method", "seed 0", "seed 1", "seed 2", "gain", "Python code", "quotations", "step"]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    order = sorted(best.values(), key=lambda group: -group[0]["held"]["docs"])
    for group in order:
        own = {t["seed"]: t for t in group}
        seeds = [f"{own[s]['held']['docs']:.3f}" if s in own else "" for s in range(3)]
        means = {d: statistics.mean(t["held"][d] - bare[d] for t in group) for d in DOMAINS}
        trained = group[0]["steps"] > 0
        changes = [f"{means[d]:+.3f}" if trained else "" for d in DOMAINS]
        time = f"{_median(group):.0f} ms" if trained else ""
        lines.append([_name(group[0]), *seeds, *changes, time])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(t: dict[str, Any]) -> str:
    layers = f" (layers {', '.join(map(str, t['layers']))})" if t["layers"] else ""
    steps = f", {t['steps']} steps" if t["name"].endswith("equal time") else ""
    return f"{t['name']}{layers}{steps}"


def _sweeps(trainings: list[dict[str, Any]]) -> str:
    """Every rate that was tried on seed 0, in the order of the methods."""
    lines = [["method", "rate", "dense", "rows", "docs", "Python code", "quotations"]]
    lines.append(["---"] + ["---:"] * 6)
    for t in sorted(trainings, key=lambda t: (t["name"], len(t["layers"]), not t["compiled"])):
        if t["seed"] == 0 and t["steps"] == 300:
            rates = [f"{t[rate]:g}" if t[rate] else "" for rate in RATES]
            held = [f"{t['held'][d]:.3f}" for d in DOMAINS]
            first = "" if t["compiled"] else ", first run"
            lines.append([_name(t) + first, *rates, *held])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gain(t: dict[str, Any], bare: dict[str, float]) -> float:
    return float(bare["docs"] - t["held"]["docs"])


def _spread(best: dict[tuple[Any, ...], list[dict[str, Any]]], name: str, rival: str) -> str:
    """By how much a method's loss is lower than its rival's, from the least to the most."""
    by_name = {arm[0]: {t["seed"]: t["held"]["docs"] for t in best[arm]} for arm in best}
    less = [by_name[rival][s] - loss for s, loss in by_name[name].items() if s in by_name[rival]]
    return f"{min(less):.3f} to {max(less):.3f}"


def _step(best: dict[tuple[Any, ...], list[dict[str, Any]]], name: str) -> float:
    return _median(next(group for arm, group in best.items() if arm[0] == name))


def _median(group: list[dict[str, Any]]) -> float:
    """The time of a step in ms, over seeds."""
    return float(statistics.median(t["step_ms"] for t in group))


def _two_layers(trainings: list[dict[str, Any]]) -> float:
    """The lowest loss of a memory at two layers."""
    two = [t for t in trainings if t["name"] == MEMORY and len(t["layers"]) == 2]
    return float(min(t["held"]["docs"] for t in two if t["seed"] == 0))
