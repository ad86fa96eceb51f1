"""Facts taught to a pretrained model by few rows of its memory, by all of them, and by LoRA.

    python tests/benchmarks/quality/patches.py CHECKPOINT DATA OUT [--facts 200] [--seconds 900]

DATA is what pretrained_data.py wrote for CHECKPOINT. A memory is trained on its documentation and
manual pages first. Then invented facts are taught to the model with it:

- all together, by the rows that engram patch make chooses, by as many drawn at random or chosen by
  their gradients alone, by all rows of their n-grams, and by LoRA, until every fact is learned;
- one by one, to compare the look-ups that the corpus predicts with the divergence measured.

OUT/results.jsonl has a line for each, written when it ends. Facts are learned with TF32 on a GPU,
and measured in float32, one by one with TF32.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from patches_model import MARGIN, TEXTS, Prepared, arguments_parser
from patches_singly import learn_singly
from torch import nn

from engram_cli.training import defaults
from engram_cli.training.edits.choice import (
    Candidates,
    ChosenRows,
    best_rows,
    each_joined,
    every_row,
    joined,
)
from engram_cli.training.edits.learning import FactTokens, take_gradients, tell_facts
from engram_cli.training.edits.rows import RowValues, edited_rows, values_at

Part = tuple[Callable[..., None], tuple[Any, ...]]


def main() -> None:
    arguments = arguments_parser(__doc__).parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    Run(arguments).run()


class Run(Prepared):
    """What facts do to the model, taught together, one by one and by LoRA."""

    def run(self) -> None:
        """Do all parts that there is time for; one that fails does not stop the others."""
        self.prepare()
        wanted = self.arguments.parts and self.arguments.parts.split(",")
        for part, given in self.parts():
            if wanted is not None and part.__name__ not in wanted:
                continue
            if self.is_late():
                self.note("out of time", part=part.__name__, given=given)
                continue
            try:
                part(*given)
            except Exception:
                self.note("failed", part=part.__name__, error=traceback.format_exc()[-1500:])

    def parts(self) -> list[Part]:
        """Return what is to be done, the most wanted first."""
        arguments = self.arguments
        first, *others = map(int, arguments.rows.split(","))
        rate, *rates = map(float, arguments.lora_rates.split(","))
        return [
            (self.disturbed, ()),
            (self.chosen, (first,)),
            (self.all_rows, ()),
            (self.singly, (None,)),
            (self.by_lora, (rate, arguments.lora_rank)),
            (self.at_random, (first,)),
            (self.singly, (first,)),
            (self.by_gradient, (first,)),
            *((self.chosen, (count,)) for count in others),
            *((self.by_lora, (each, arguments.lora_rank)) for each in rates),
        ]

    # All facts together.

    def chosen(self, per_token: int) -> None:
        """Teach by the rows that engram patch make chooses."""
        self.teach("chosen", self.choose(per_token), per_token)

    def choose(self, per_token: int) -> Sequence[ChosenRows]:
        """Return the rows of each fact with the largest squared gradient for each look-up."""
        return self.best(per_token, self.candidates, self.tokens / 1e6)

    def best(
        self, per_token: int, candidates: Sequence[Candidates], floor: float
    ) -> Sequence[ChosenRows]:
        return each_joined(
            len(candidates),
            ((fact, best_rows(candidates[fact], squares, per_token, floor))
             for fact, squares in self.influences),
        )  # fmt: skip

    def by_gradient(self, per_token: int) -> None:
        """Teach by the rows with the largest gradients, whatever reads them."""
        blind = [replace(each, hits=np.zeros_like(each.hits)) for each in self.candidates]
        self.teach("largest gradients", self.best(per_token, blind, 1.0), per_token)

    def all_rows(self) -> None:
        """Teach by all rows of the facts' n-grams."""
        self.teach("all rows", [every_row(each) for each in self.candidates], None)

    def at_random(self, per_token: int) -> None:
        """Teach by rows of the facts' n-grams drawn at random."""
        self.teach("random", self.drawn(per_token), per_token)

    def drawn(self, per_token: int) -> Sequence[ChosenRows]:
        """Return as many rows of each fact, drawn at random."""
        draw = np.random.default_rng(0)
        pairs = zip(self.facts, self.candidates, strict=True)
        return [some(each, per_token * fact.tokens, draw) for fact, each in pairs]

    def teach(
        self,
        name: str,
        chosen: Sequence[ChosenRows],
        per_token: int | None,
    ) -> None:
        """Teach all facts by the rows chosen, and measure."""
        rows, begin = joined(chosen), time.perf_counter()
        with tf32():
            learned = self.learn(self.facts, rows)
        seconds = time.perf_counter() - begin
        print(f"{name} {per_token}: learned in {learned.steps} steps", flush=True)
        with edited_rows(self.memory, learned.edits):
            told = tell_facts(self.model, self.facts, margin=MARGIN, batch_tokens=4096)
        self.note(
            "together",
            name=name,
            per_token=per_token,
            seconds=round(seconds, 2),
            rows=sum(map(len, rows.values())),
            predicted=self.predicted(rows),
            steps=learned.steps,
            exact=int(told.exact.sum()),
            facts=len(self.facts),
            fact_loss=round(float(told.losses.mean()), 4),
            **self.divergence(partial(edited_rows, self.memory, learned.edits), learned.edits),
        )

    # Rows that are changed without a fact.

    def disturbed(self) -> None:
        """Change as many rows by noise of one size, from the least to the most read ones."""
        arguments = self.arguments
        every = joined(map(every_row, self.candidates))
        keys = np.array([(layer, row) for layer, own in every.items() for row in own.tolist()])
        hits = np.array([self.hits[layer][row] for layer, row in keys])
        bands = np.array_split(keys[np.argsort(hits, kind="stable")], arguments.edits)
        draw = np.random.default_rng(2)
        lines: list[dict[str, Any]] = []
        for at in draw.permutation(len(bands)).tolist():
            if self.is_late():
                break
            taken = bands[at][draw.permutation(len(bands[at]))[: arguments.edit_rows]]
            rows = {int(n): np.sort(taken[taken[:, 0] == n, 1]) for n in np.unique(taken[:, 0])}
            own = {layer: self.noise(layer, each, draw) for layer, each in rows.items()}
            changed = partial(edited_rows, self.memory, own)
            found = self.divergence(changed, own, arguments.single_tokens, TEXTS[:1])
            kept = {name: found[TEXTS[0]][name] for name in ("kl", "lookups")}
            lines.append({"rows": len(taken), "predicted": self.predicted(rows), **kept})
        self.note(
            "disturbed",
            edits=len(lines),
            spearman=spearman(lines, "predicted", "kl"),
            spearman_lookups=spearman(lines, "predicted", "lookups"),
            lines=lines,
        )

    def noise(self, layer: int, rows: NDArray[np.int64], draw: np.random.Generator) -> RowValues:
        """Return the rows of a layer with noise added."""
        at = torch.from_numpy(rows).to(self.device)
        values = values_at(self.memory, layer, at).to(self.device)
        scale = self.arguments.noise * self.sizes[layer]
        added = torch.from_numpy(draw.standard_normal(values.shape)).to(values)
        return RowValues(rows=at, values=values + scale * added)

    # One by one.

    def singly(self, per_token: int | None, choose: Callable[..., Any] | None = None) -> None:
        """Teach facts one by one: as many models side by side, each with edits of its own.

        `choose` says which rows: as engram patch make chooses, where it is None.
        """
        # In the order in which learn_facts puts them into a batch.
        order = sorted(
            range(min(self.arguments.singles, len(self.facts))),
            key=lambda each: (-len(self.facts[each].ids), each),
        )
        facts = [self.facts[each] for each in order]
        if per_token is None:
            name, rows_of = "all rows", [every_row(each) for each in self.candidates]
        else:
            name = "chosen" if choose is None else choose.__name__
            rows_of = (choose or self.choose)(per_token)
        chosen = [rows_of[each] for each in order]
        with tf32():
            edits, steps = learn_singly(self, facts, chosen)
            print(f"{name}: learned in {steps} steps", flush=True)
            lines = []
            for line in self.measured_singly(order, facts, chosen, edits):
                print(json.dumps(line), flush=True)
                lines.append(line)
        self.note(
            "singly",
            name=name,
            per_token=per_token,
            steps=steps,
            exact=sum(each["exact"] for each in lines),
            facts=len(lines),
            spearman=spearman(lines, "predicted", "kl"),
            spearman_lookups=spearman(lines, "predicted", "lookups"),
            kl=float(np.mean([each["kl"] for each in lines])),
            lines=lines,
        )

    def measured_singly(
        self,
        order: Sequence[int],
        facts: Sequence[FactTokens],
        chosen: Sequence[ChosenRows],
        edits: Sequence[dict[int, RowValues]],
    ) -> Iterator[dict[str, Any]]:
        """Yield what each fact alone does to text of the memory's domain, while there is time."""
        for at in np.random.default_rng(1).permutation(len(facts)).tolist():
            if self.is_late():
                return
            own = edits[at]
            with edited_rows(self.memory, own):
                told = tell_facts(self.model, [facts[at]], margin=MARGIN, batch_tokens=4096)
            changed = partial(edited_rows, self.memory, own)
            found = self.divergence(changed, own, self.arguments.single_tokens, TEXTS[:1])
            yield {
                "fact": order[at],
                "rows": sum(map(len, chosen[at].values())),
                "predicted": self.predicted(chosen[at]),
                "exact": bool(told.exact[0]),
                **{name: found[TEXTS[0]][name] for name in ("kl", "lookups")},
            }

    # LoRA.

    def by_lora(self, rate: float, rank: int) -> None:
        """Teach all facts by a LoRA adapter on all linear layers of the decoder."""
        import peft

        torch.manual_seed(0)
        names = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and ".layers." in name and "engram" not in name
        ]
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
        self.teach_adapter(peft.get_peft_model(self.model, config), rank, rate)

    def teach_adapter(self, adapted: Any, rank: int, rate: float) -> None:
        """Teach all facts by an adapter, measure, and take it off the model."""
        weights = [w for n, w in adapted.named_parameters() if "lora_" in n]
        optimiser = torch.optim.AdamW(weights, lr=rate, betas=defaults.BETAS, weight_decay=0.0)
        steps = 0
        while steps < self.arguments.edit_steps and take_gradients(
            adapted, self.facts, MARGIN, 4096
        ):
            optimiser.step()
            optimiser.zero_grad()
            steps += 1
        told = tell_facts(adapted, self.facts, margin=MARGIN, batch_tokens=4096)
        adapted.base_model.disable_adapter_layers()
        self.note(
            "LoRA",
            rank=rank,
            rate=rate,
            weights=sum(w.numel() for w in weights),
            steps=steps,
            exact=int(told.exact.sum()),
            facts=len(self.facts),
            **self.divergence(partial(switched_on, adapted), None),
        )
        adapted.base_model.enable_adapter_layers()
        self.model = adapted.unload()
        self.model.requires_grad_(False)


@contextmanager
def switched_on(adapted: Any) -> Iterator[None]:
    adapted.base_model.enable_adapter_layers()
    try:
        yield
    finally:
        adapted.base_model.disable_adapter_layers()


def some(fact: Candidates, count: int, draw: np.random.Generator) -> ChosenRows:
    """Return so many rows of a fact, drawn at random."""
    every = every_row(fact)
    keys = np.array([(layer, row) for layer, own in every.items() for row in own.tolist()])
    taken = keys[draw.permutation(len(keys))[:count]]
    return {int(n): np.sort(taken[taken[:, 0] == n, 1]) for n in np.unique(taken[:, 0])}


@contextmanager
def tf32() -> Iterator[None]:
    """Multiply float32 matrices with TF32 on a GPU."""
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def spearman(lines: Sequence[Mapping[str, Any]], one: str, other: str) -> float | None:
    """Return the rank correlation of two columns; equal values share their mean rank."""
    if len(lines) < 3:
        return None
    ranks = [mean_ranks(np.array([line[name] for line in lines])) for name in (one, other)]
    if any(np.ptp(own) == 0 for own in ranks):
        return None
    return round(float(np.corrcoef(*ranks)[0, 1]), 4)


def mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[which]


if __name__ == "__main__":
    main()
