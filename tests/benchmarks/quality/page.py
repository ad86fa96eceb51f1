"""Writes docs/quality.md from the results of the experiments.

python tests/benchmarks/quality/page.py
"""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from pathlib import Path
from typing import Any

import pretrained_page
from pretrained_page import ALONE

HERE = Path(__file__).parent
FOUND = HERE / "h200.json"
SHARES = HERE / "shares.json"
TEMPLATE = HERE / "page.md"
PAGE = HERE.parents[2] / "docs" / "quality.md"


def main() -> None:
    found = json.loads(FOUND.read_text())
    shares = json.loads(SHARES.read_text())
    PAGE.write_text(wrapped(page(found, shares)))


def wrapped(text: str) -> str:
    """Return Markdown with its paragraphs and list items wrapped; tables and headings stay."""
    blocks = []
    for block in text.split("\n\n"):
        if block.lstrip().startswith(("|", "#")) or "```" in block:
            blocks.append(block)
            continue
        items = re.split(r"\n(?=- )", block)
        blocks.append("\n".join(_filled(" ".join(item.split())) for item in items))
    return "\n\n".join(blocks).rstrip("\n") + "\n"


def _filled(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(
        line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def page(found: dict[str, Any], shares: dict[str, Any]) -> str:
    """Return the page."""
    size, trainings = found["size"], found["trainings"]
    scratch = [t for t in trainings if t["start"] == "scratch"]
    go_on = [t for t in trainings if t["start"] == "bare"]
    memory = next(t for t in trainings if t["init"] == "normal")
    bare = [t for t in scratch if t["init"] is None and not t["wider"]]
    geometry = found["geometry"]

    def differs(name: str, within: list[dict[str, Any]]) -> float:
        return statistics.mean(_against_bare(name, within))

    seconds = {t["name"]: t["seconds"] for t in scratch if t["seed"] == 2}
    return TEMPLATE.read_text().format(
        parameters=bare[0]["parameters"] / 1e6,
        corpus=found["train_tokens"] / 1e6,
        held_out=found["held_out_tokens"],
        at=" and ".join(str(layer) for layer in geometry["layers"]),
        dim=geometry["dim"],
        rows=memory["memory_rows"] / 1e6,
        read=2 * geometry["heads"] * geometry["dim"] * len(geometry["layers"]),
        dense=memory["memory_dense"] / 1e6,
        machine=found["machine"],
        torch=found["versions"]["torch"],
        steps=found["steps"],
        more=found["steps"] // 2,
        trained=found["steps"] * size["batch"] * size["length"] / 1e6,
        all_trained=1.5 * found["steps"] * size["batch"] * size["length"] / 1e6,
        scratch=_table(scratch),
        go_on=_table(go_on),
        seeds=len(bare),
        gain=-differs("memory, random rows", scratch),
        wider=differs("bare, wider", scratch),
        slower=seconds["memory, random rows"] / seconds["bare"],
        random=differs("memory, random rows", go_on),
        next_token=differs("memory, next-token rows", go_on),
        next_token_frozen=differs("memory, next-token rows frozen", go_on),
        random_frozen=differs("memory, random rows frozen", go_on),
        token_mean_frozen=differs("memory, token-mean rows frozen", go_on),
        gates=_gates(trainings),
        **_shares(shares),
        **pretrained_page.fields(),
        **{name: size[name] for name in ("layers", "hidden", "vocabulary", "batch", "length")},
    )


def _shares(found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the section on one budget for experts or memory."""
    trainings = sorted(found["trainings"], key=lambda t: (t["part"], t["seed"]))
    header = [
        "memory",
        "experts, idle",
        "rows",
        "experts per layer",
        "held-out loss",
        "compared with none",
    ]
    lines = [header, ["---:"] * len(header)]
    none = {t["seed"]: t["held_out"] for t in trainings if not t["part"]}
    for training in trainings:
        less = training["held_out"] - none[training["seed"]]
        lines.append(
            [
                f"{100 * training['part'] / found['slots']:.0f} %",
                f"{training['idle_experts'] / 1e6:.1f} M",
                f"{training['memory_rows'] / 1e6:.1f} M",
                str(training["experts"]),
                f"{training['held_out']:.3f}",
                f"{less:+.3f}" if training["part"] else "",
            ]
        )
    totals = [t["parameters"] for t in trainings]
    return {
        "shares": "\n".join(f"| {' | '.join(line)} |" for line in lines),
        "share_steps": found["steps"],
        "share_total": statistics.mean(totals) / 1e6,
        "share_unequal": 100 * (max(totals) / min(totals) - 1),
        "share_idle": trainings[0]["idle_experts"] / 1e6,
        "share_taken": found["taken"],
        "share_experts": trainings[0]["experts"],
        "share_inner": found["size"]["inner"] // found["taken"],
        "share_busiest": max(t["busiest"] for t in trainings),
    }


def _against_bare(name: str, within: list[dict[str, Any]]) -> list[float]:
    """Return the held-out loss of a training minus that of the bare one, by seed."""
    bare = {t["seed"]: t["held_out"] for t in within if t["name"] == "bare"}
    return [t["held_out"] - bare[t["seed"]] for t in within if t["name"] == name]


def _table(trainings: list[dict[str, Any]]) -> str:
    seeds = sorted({t["seed"] for t in trainings})
    header = [
        "training",
        *(f"seed {seed}" for seed in seeds),
        f"compared with the {ALONE}",
        "spread",
    ]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for name in dict.fromkeys(t["name"] for t in trainings):
        own = {t["seed"]: t["held_out"] for t in trainings if t["name"] == name}
        against = _against_bare(name, trainings)
        spread = f"{min(against):+.3f} to {max(against):+.3f}" if len(against) > 1 else ""
        losses = [f"{own[seed]:.3f}" if seed in own else "" for seed in seeds]
        differs = "" if name == "bare" else f"{statistics.mean(against):+.3f}"
        shown = name.replace("bare", ALONE)
        lines.append([shown, *losses, differs, "" if name == "bare" else spread])
    return "Held-out loss, nats per token:\n\n" + "\n".join(f"| {' | '.join(x)} |" for x in lines)


def _gates(trainings: list[dict[str, Any]]) -> str:
    lines = ["| training | layer | mean | 10 % | 50 % | 90 % |", "| --- | --- | " + "---: | " * 4]
    for training in trainings:
        if training["seed"] == 0:
            name = f"{training['name']}, {'from scratch' if training['start'] != 'bare' else ''}"
            for layer, figures in training["gates"].items():
                shown = " | ".join(f"{figure:.2f}" for figure in figures)
                number = layer.rpartition(".")[2]
                lines.append(f"| {name.rstrip(', ')} | {number} | {shown} |")
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    main()
