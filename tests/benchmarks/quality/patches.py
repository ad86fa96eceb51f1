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

import argparse
import json
import lzma
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from invented_facts import invented_facts
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engram_cli.commands.attach.command import attach_checkpoint
from engram_cli.commands.build_table import build_table
from engram_cli.commands.compress_vocab import run_compress_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.corpus import CompressVocabRequest
from engram_cli.commands.requests.tables import AttachRequest, BuildTableRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.runtime import clip_grad_norm, loading
from engram_cli.runtime.batch_rows import RowFinder
from engram_cli.runtime.carried import memories
from engram_cli.runtime.evaluation.windows import Piece
from engram_cli.training import defaults
from engram_cli.training.edits.choice import (
    Candidates,
    ChosenRows,
    best_rows,
    each_joined,
    every_row,
    joined,
)
from engram_cli.training.edits.divergence import EditReads, measure_divergence
from engram_cli.training.edits.influence import measure_influence
from engram_cli.training.edits.learning import (
    FactTokens,
    Learned,
    learn_facts,
    row_sizes,
    take_gradients,
    tell_facts,
)
from engram_cli.training.edits.rows import (
    RowValues,
    edited_rows,
    find_candidates,
    row_finder,
    values_at,
)
from engram_cli.training.model import prepare_model
from engram_cli.training.optimiser import make_optimiser

LAYERS, ORDERS, HEADS, DIM = (2, 8, 14, 20), (2, 3), 8, 32
MARGIN = 1.0
LENGTH, LEAST, CHUNK = 512, 128, 2**17
TEXTS = ("docs-held", "third-held")  # of the memory's domain, and of none


Part = tuple[Callable[..., None], tuple[Any, ...]]


def main() -> None:
    arguments = arguments_parser(__doc__).parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    Run(arguments).run()


def arguments_parser(text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--facts", type=int, default=200)
    parser.add_argument("--singles", type=int, default=200, help="facts taught one by one")
    parser.add_argument("--single-tokens", type=int, default=40_000, help="read for each of them")
    parser.add_argument("--edits", type=int, default=40, help="edits by noise")
    parser.add_argument("--noise", type=float, default=10.0, help="in sizes of the rows' values")
    parser.add_argument("--context", type=int, default=LENGTH, help="of what is measured")
    parser.add_argument("--parts", help="only these, such as disturbed,chosen")
    parser.add_argument("--edit-rows", type=int, default=64, help="rows of each of them")
    parser.add_argument("--bundle", type=Path, help="a trained memory to take; none trains one")
    parser.add_argument("--rows-per-head", type=int, default=200_000)
    parser.add_argument("--layers", default="2,8,14,20")
    parser.add_argument("--steps", type=int, default=300, help="of the memory's training")
    parser.add_argument("--batch", type=int, default=32, help="sequences of 512 tokens a step")
    parser.add_argument("--train-tokens", type=int)
    parser.add_argument("--held-tokens", type=int, default=100_000)
    parser.add_argument("--edit-steps", type=int, default=100, help="at most, for the facts")
    parser.add_argument("--rate", type=float, default=defaults.EDIT_RATE)
    parser.add_argument("--rows", default="8,4,16,32", help="rows per token")
    parser.add_argument("--lora-rates", default="1e-3,3e-4")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=900.0)
    return parser


class Run:
    """The model with its trained memory, the facts, and what was found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.begin = time.perf_counter()
        self.found: list[dict[str, Any]] = []
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.layers = tuple(map(int, arguments.layers.split(",")))
        self.here = Workspace(self.out / "work")
        self.here.folder.mkdir(exist_ok=True)
        self.texts = {name: self.load(name) for name in (*TEXTS, "docs-train")}
        config = json.loads((arguments.checkpoint / "config.json").read_text())
        self.marks = config["bos_token_id"], config["eos_token_id"]

    def load(self, name: str) -> NDArray[np.int64]:
        """Return the token ids of a file of DATA."""
        import io

        packed = (self.arguments.data / f"{name}.npy.xz").read_bytes()
        return np.load(io.BytesIO(lzma.decompress(packed)))

    def note(self, kind: str, **found: Any) -> None:
        """Keep and print a result."""
        line = {"kind": kind, "at": round(time.perf_counter() - self.begin, 1), **found}
        self.found.append(line)
        with (self.out / "results.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        shown = {k: v for k, v in line.items() if not isinstance(v, list) or len(v) < 8}
        print(json.dumps(shown), flush=True)

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

    def is_late(self) -> bool:
        return time.perf_counter() - self.begin > self.arguments.seconds

    # What all parts share.

    def prepare(self) -> None:
        """Count the corpus, make a memory, train it, encode the facts."""
        arguments = self.arguments
        ids = self.texts["docs-train"][: arguments.train_tokens]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32)
        bundle = arguments.bundle or self.make()
        self.model = prepare_model(model.to(self.device), bundle=bundle)
        self.note("prepared", tokens=len(ids))
        if arguments.bundle is None:
            self.train(ids)
        self.model.eval().requires_grad_(False)
        self.memory = next(iter(memories(self.model).values()))
        self.finder = row_finder(self.memory)
        self.tokens, self.hits = len(ids), self.count(ids)
        tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
        self.facts = [
            encoded(tokenizer, fact["prompt"], fact["target"])
            for fact in invented_facts(arguments.facts)
        ]
        self.candidates = [
            find_candidates(self.memory, self.finder, fact.ids, lambda n, rows: self.hits[n][rows])
            for fact in self.facts
        ]
        self.sizes = row_sizes(self.memory, joined(map(every_row, self.candidates)))
        given = {"batch_tokens": 4096}
        told = tell_facts(self.model, self.facts, margin=MARGIN, **given)
        self.note("before", exact=int(told.exact.sum()), loss=round(float(told.losses.mean()), 3))

    def make(self) -> Path:
        """Make a memory of random rows, whose gates are shut."""
        arguments = self.arguments
        run_compress_vocab(
            CompressVocabRequest(
                source=arguments.checkpoint / "tokenizer.json", workspace=self.here
            )
        )
        geometry = Geometry(
            orders=ORDERS,
            heads=HEADS,
            rows_per_head=(arguments.rows_per_head,),
            layers=self.layers,
        )
        build_table(
            BuildTableRequest(
                geometry=geometry,
                vocab=self.here.vocab,
                out=self.here.table,
                dim=DIM,
                dtype="float32",
                init="normal",
            )
        )
        bundle = self.here.folder / "engram"
        attach_checkpoint(
            AttachRequest(
                checkpoint=arguments.checkpoint,
                table=self.here.table,
                out=bundle,
                at=self.layers,
                reference=True,
            )
        )
        return bundle

    @cached_property
    def influences(self) -> list[tuple[int, NDArray[np.float32]]]:
        """The squared gradients of each fact's look-ups, for each of its target tokens."""
        found = measure_influence(self.model, self.memory, self.facts, batch_tokens=4096)
        return [(each.fact, each.squares) for each in found]

    def count(self, ids: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """Return how often the corpus looks each row of each layer up, as hash-stats counts it."""
        spec = self.memory.spec
        size = len(self.memory.hash_tensors().lookup)
        hashed = loading.hash_tensors(spec.layout, spec.layers, vocab_size=size, device=self.device)
        finder = RowFinder(hashed, packed=False)
        hits = {n: torch.zeros(spec.layout.layer(n).rows, dtype=torch.int64, device=self.device)
                for n in spec.layers}  # fmt: skip
        older = max(ORDERS) - 1
        for begin in range(0, len(ids), CHUNK):
            first = max(begin - older, 0)  # with what the n-grams of the first tokens reach back to
            part = torch.from_numpy(ids[first : begin + CHUNK].astype(np.int64)).to(self.device)
            rows = finder.find(part[None])[0][:, begin - first :]
            for place, layer in enumerate(spec.layers):
                own = rows[place].flatten().long()
                hits[layer] += torch.bincount(own, minlength=len(hits[layer]))
        return {layer: own.cpu().numpy() for layer, own in hits.items()}

    def train(self, ids: NDArray[np.int64]) -> None:
        """Train the memory as engram train does."""
        arguments = self.arguments
        optimiser = make_optimiser(self.model)
        rates = [group["lr"] for group in optimiser.param_groups]
        lines = torch.from_numpy(ids[: len(ids) // LENGTH * LENGTH].astype(np.int64))
        lines = lines.view(-1, LENGTH)
        order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))
        losses = []
        self.model.train()
        for step in range(arguments.steps):
            chosen = order[torch.arange(step * arguments.batch, (step + 1) * arguments.batch)
                           % len(order)]  # fmt: skip
            batch = lines[chosen].to(self.device)
            half = torch.autocast(self.device.type, dtype=torch.bfloat16)
            with half if self.device.type == "cuda" else nullcontext():
                loss = self.model(batch, labels=batch, use_cache=False).loss
            loss.backward()
            clip_grad_norm(self.model, 1.0)
            warm = min(1.0, (step + 1) / max(defaults.WARM_UP * arguments.steps, 1))
            share = warm * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.detach())
        taken = torch.stack(losses).tolist()
        first, last = np.mean(taken[:10]), np.mean(taken[-10:])
        self.note("trained", first=round(float(first), 3), last=round(float(last), 3))

    def predicted(self, rows: Mapping[int, NDArray[np.int64]]) -> float:
        """Return look-ups per million tokens of the corpus that read these rows."""
        found = sum(int(self.hits[layer][own].sum(dtype=np.uint64)) for layer, own in rows.items())
        return 1e6 * found / self.tokens

    def pieces(self, name: str, tokens: int) -> Iterator[Piece]:
        """Yield the beginnings of a text's documents, about so many tokens in all."""
        ids = self.texts[name]
        documents = [each for each in split_documents(ids, *self.marks) if len(each) > 1]
        most = max(tokens // len(documents), LEAST)
        for number, part in enumerate(documents[: max(tokens // most, 1)]):
            yield Piece(document=number, ids=part[:most].astype(np.int64))

    def divergence(
        self,
        changed: Callable[[], Any],
        edits: Mapping[int, RowValues] | None,
        tokens: int | None = None,
        texts: Sequence[str] = TEXTS,
    ) -> dict[str, Any]:
        """Return the KL divergence on each text, with its interval.

        `edits`: what `changed` changes, None where that is not rows.
        """
        found: dict[str, Any] = {}
        for name in texts:
            own = measure_divergence(
                self.model,
                self.pieces(name, tokens or self.arguments.held_tokens),
                changed,
                edits and EditReads(self.finder, self.memory, edits),
                context=self.arguments.context,
                batch_tokens=16 * LENGTH,
            )
            kl = own.divergence
            found[name] = {
                "kl": kl.mean,
                "low": kl.low,
                "high": kl.high,
                "loss": own.change.mean,
                "lookups": 1e6 * own.lookups / own.tokens,
                "read": own.read / own.tokens,
            }
        return found

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

    def learn(self, facts: Sequence[FactTokens], rows: ChosenRows, batch: int = 4096) -> Learned:
        return learn_facts(
            self.model,
            self.memory,
            facts,
            rows,
            self.sizes,
            steps=self.arguments.edit_steps,
            rate=self.arguments.rate,
            margin=MARGIN,
            batch_tokens=batch,
        )

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
            edits, steps = self.learn_singly(facts, chosen)
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

    def learn_singly(
        self,
        facts: Sequence[FactTokens],
        chosen: Sequence[ChosenRows],
    ) -> tuple[list[dict[int, RowValues]], int]:
        """Return the edits of each fact alone, learned in one batch of them all."""
        heights = {n: self.memory.spec.layout.layer(n).rows for n in self.memory.spec.layers}
        keys = {
            layer: np.concatenate(
                [own.get(layer, np.zeros(0, np.int64)) + line * height
                 for line, own in enumerate(chosen)]
            )
            for layer, height in heights.items()
        }  # fmt: skip
        with apart(self.memory):
            learned = self.learn(facts, {n: own for n, own in keys.items() if len(own)}, 2**20)
        edits: list[dict[int, RowValues]] = [{} for _ in facts]
        for layer, own in learned.edits.items():
            line = torch.div(own.rows, heights[layer], rounding_mode="floor")
            for number, each in enumerate(edits):
                here = line == number
                if bool(here.any()):
                    each[layer] = RowValues(
                        rows=own.rows[here] - number * heights[layer], values=own.values[here]
                    )
        return edits, learned.steps

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


class Apart(nn.Module):
    """Rows of a layer in which each line of a batch has a table of its own, as far as edits go."""

    def __init__(self, base: nn.Module, height: int) -> None:
        super().__init__()
        self.base, self.height = base, height

    def forward(self, rows: Tensor) -> Tensor:
        return self.base(rows % self.height)


@contextmanager
def apart(memory: Any) -> Iterator[None]:
    """Number the rows of each line of a batch on: line 1 has the rows from the height on."""
    kept = {}
    for layer in memory.spec.layers:
        embedding = memory.layers[str(layer)].multi_head_embedding
        height = memory.spec.layout.layer(layer).rows
        kept[layer] = embedding.embedding, embedding.forward
        embedding.embedding = Apart(embedding.embedding, height)

        def forward(rows: Tensor, embedding: Any = embedding, height: int = height) -> Tensor:
            lines = torch.arange(len(rows), device=rows.device)[:, None, None]
            single = rows.ndim == 3 and len(rows) == 1
            out = embedding.embedding(rows if single else rows + lines * height)
            return out.flatten(-2) if out.ndim > rows.ndim else out

        embedding.forward = forward
    try:
        yield
    finally:
        for layer, (rows, _) in kept.items():
            embedding = memory.layers[str(layer)].multi_head_embedding
            embedding.embedding = rows
            del embedding.forward


@contextmanager
def switched_on(adapted: Any) -> Iterator[None]:
    adapted.base_model.enable_adapter_layers()
    try:
        yield
    finally:
        adapted.base_model.disable_adapter_layers()


def encoded(tokenizer: Any, prompt: str, target: str) -> FactTokens:
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    whole = tokenizer.encode(prompt + target, add_special_tokens=False).ids
    assert whole[: len(ids)] == ids
    return FactTokens(ids=np.array(whole, dtype=np.int64), first=len(ids))


def split_documents(ids: NDArray[Any], bos: int, eos: int) -> list[NDArray[Any]]:
    """Return the documents of a text: each begins with `bos`, or each ends with `eos`."""
    ends = ids == bos if ids[0] == bos else np.roll(ids == eos, 1)
    return np.split(ids, np.flatnonzero(ends[1:]) + 1)


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
