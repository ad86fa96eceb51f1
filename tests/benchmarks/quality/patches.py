"""Facts taught to a pretrained model by few rows of its memory, by all of them, and by LoRA.

    python tests/benchmarks/quality/patches.py CHECKPOINT DATA OUT [--facts 200] [--seconds 900]

DATA is what pretrained_data.py wrote for CHECKPOINT. A memory is trained on its documentation and
manual pages first. Then invented facts are taught to the model with it:

- one by one, to compare the look-ups that the statistics predict with the divergence measured;
- all together, by a number of the least read rows, by rows drawn at random, by all rows, and by
  LoRA, each until every fact is learned.

OUT/results.jsonl has a line for each, written when it ends, and OUT/patches.json all of it.
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
from multiprocessing import get_context
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
from engram_cli.commands.hash_stats import hash_stats
from engram_cli.commands.requests.corpus import CompressVocabRequest, HashStatsRequest
from engram_cli.commands.requests.tables import AttachRequest, BuildTableRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.runtime import clip_grad_norm
from engram_cli.runtime.carried import memories
from engram_cli.runtime.evaluation.windows import Piece
from engram_cli.stats.stats_io import read_stats
from engram_cli.training import defaults
from engram_cli.training.edits.choice import Candidates, choose_rows, joined
from engram_cli.training.edits.divergence import EditReads, measure_divergence
from engram_cli.training.edits.learning import (
    FactTokens,
    learn_facts,
    take_gradients,
    tell_facts,
)
from engram_cli.training.edits.rows import RowValues, edited_rows, row_finder
from engram_cli.training.model import prepare_model
from engram_cli.training.optimiser import make_optimiser

LAYERS, ORDERS, HEADS, DIM = (2, 8, 14, 20), (2, 3), 8, 32
MARGIN = 1.0
LENGTH, BATCH = 512, 32
TEXTS = ("docs-held", "third-held")  # of the memory's domain, and of none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--facts", type=int, default=200)
    parser.add_argument("--singles", type=int, default=200, help="facts taught one by one")
    parser.add_argument("--rows-per-head", type=int, default=200_000)
    parser.add_argument("--layers", default="2,8,14,20")
    parser.add_argument("--steps", type=int, default=300, help="of the memory's training")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--train-tokens", type=int)
    parser.add_argument("--held-tokens", type=int, default=100_000)
    parser.add_argument("--parts", default="together,lora,singly")
    parser.add_argument("--edit-steps", type=int, default=100, help="at most, for the facts")
    parser.add_argument("--single-tokens", type=int, default=40_000, help="read for each fact")
    parser.add_argument("--rates", default="0.3")
    parser.add_argument("--rows", default="4,8,16,32,64,0", help="rows per token; 0 for all")
    parser.add_argument("--lora-rates", default="3e-4,1e-3")
    parser.add_argument("--seconds", type=float, default=900.0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    Run(arguments).run()


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
        parts = {"together": self.together, "singly": self.singly, "lora": self.by_lora}
        for part in [parts[name] for name in self.arguments.parts.split(",")]:
            if time.perf_counter() - self.begin > self.arguments.seconds:
                self.note("out of time", part=part.__name__)
                continue
            try:
                part()
            except Exception:
                self.note("failed", part=part.__name__, error=traceback.format_exc()[-1500:])
        (self.out / "patches.json").write_text(json.dumps(self.found, indent=1) + "\n")

    # What all parts share.

    def prepare(self) -> None:
        """Count the corpus, make a memory, train it, encode the facts."""
        arguments = self.arguments
        ids = self.texts["docs-train"][: arguments.train_tokens]
        corpus = self.here.folder / "train.npy"
        np.save(corpus, ids)
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
        request = HashStatsRequest(
            sources=(corpus,), geometry=geometry, vocab=self.here.vocab, workspace=self.here
        )
        counting = get_context("spawn").Process(target=hash_stats, args=(request,))
        counting.start()  # while the memory is made and trained
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
        self.note("prepared", tokens=len(ids))
        self.train(bundle, ids)
        counting.join()
        self.memory = next(iter(memories(self.model).values()))
        self.finder = row_finder(self.memory)
        statistics = read_stats(self.here.stats)
        self.tokens = statistics.tokens
        self.hits = {layer: statistics.hits(layer) for layer in self.memory.spec.layers}
        tokenizer = Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
        self.facts = [
            encoded(tokenizer, fact["prompt"], fact["target"])
            for fact in invented_facts(arguments.facts)
        ]
        self.candidates = [self.candidates_of(fact) for fact in self.facts]
        told = tell_facts(self.model, self.facts, margin=MARGIN, batch_tokens=4096)
        self.note("before", exact=int(told.exact.sum()), loss=round(float(told.losses.mean()), 3))

    def train(self, bundle: Path, ids: NDArray[np.int64]) -> None:
        """Train the memory as engram train does."""
        arguments = self.arguments
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32)
        self.model = prepare_model(model.to(self.device), bundle=bundle)
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
        self.model.eval().requires_grad_(False)
        taken = torch.stack(losses).tolist()
        first, last = np.mean(taken[:10]), np.mean(taken[-10:])
        self.note("trained", first=round(float(first), 3), last=round(float(last), 3))

    def candidates_of(self, fact: FactTokens, *, own: bool = False) -> Candidates:
        """Return the rows of a fact; `own`: those of the positions that predict its target."""
        layout, layers = self.memory.spec.layout, self.memory.spec.layers
        found = self.finder.find(torch.from_numpy(fact.ids)[None])[0].numpy().astype(np.int64)
        rows = found[:, fact.first - 1 if own else 0 : -1]
        hits = np.stack([self.hits[layer][rows[i]] for i, layer in enumerate(layers)])
        shape = rows.shape
        orders = np.repeat(np.array(layout.orders), layout.heads)
        return Candidates(
            layers=np.broadcast_to(np.array(layers)[:, None, None], shape).reshape(-1),
            rows=rows.reshape(-1),
            orders=np.broadcast_to(orders, shape).reshape(-1),
            hits=hits.reshape(-1).astype(np.uint64),
            tokens=fact.tokens,
        )

    def predicted(self, rows: Mapping[int, NDArray[np.int64]]) -> float:
        """Return look-ups per million tokens of the corpus that read these rows."""
        found = sum(int(self.hits[layer][own].sum(dtype=np.uint64)) for layer, own in rows.items())
        return 1e6 * found / self.tokens

    def pieces(self, name: str, tokens: int) -> Iterator[Piece]:
        """Yield the documents of the first tokens of a text."""
        ids = self.texts[name][:tokens]
        for number, part in enumerate(np.split(ids, np.flatnonzero(ids == 0) + 1)):
            if len(part):
                yield Piece(document=number, ids=part.astype(np.int64))

    def divergence(
        self,
        changed: Callable[[], Any],
        reads: Callable[[], EditReads | None],
        tokens: int | None = None,
    ) -> dict[str, Any]:
        """Return the KL divergence on each text, with its interval."""
        found: dict[str, Any] = {}
        for name in TEXTS:
            own = measure_divergence(
                self.model,
                self.pieces(name, tokens or self.arguments.held_tokens),
                changed,
                reads(),
                context=LENGTH,
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

    def together(self) -> None:
        """Teach all facts by the least read rows, by as many random ones, and by all."""
        draw = np.random.default_rng(0)
        for rate in map(float, self.arguments.rates.split(",")):
            for per_token in [int(n) or None for n in self.arguments.rows.split(",")]:
                chosen = choose_rows(self.candidates, per_token)
                self.teach("least read" if per_token else "all rows", chosen, per_token, rate)
                if per_token:
                    drawn = [some(each, per_token, draw) for each in self.candidates]
                    self.teach("random", drawn, per_token, rate)
        narrow = [self.candidates_of(fact, own=True) for fact in self.facts]
        for per_token in (16, None):
            name = "least read, positions of the target" if per_token else "all rows of these"
            self.teach(name, choose_rows(narrow, per_token), per_token, rate)

    def teach(
        self,
        name: str,
        chosen: Sequence[Mapping[int, NDArray[np.int64]]],
        per_token: int | None,
        rate: float,
    ) -> None:
        """Teach all facts by the rows chosen, and measure."""
        if time.perf_counter() - self.begin > self.arguments.seconds:
            return
        rows = joined([dict(each) for each in chosen])
        learned = learn_facts(
            self.model,
            self.memory,
            self.facts,
            rows,
            steps=self.arguments.edit_steps,
            rate=rate,
            margin=MARGIN,
            batch_tokens=4096,
        )
        with edited_rows(self.memory, learned.edits):
            told = tell_facts(self.model, self.facts, margin=MARGIN, batch_tokens=4096)
        self.note(
            "together",
            name=name,
            per_token=per_token,
            rate=rate,
            rows=sum(map(len, rows.values())),
            predicted=self.predicted(rows),
            steps=learned.steps,
            exact=int(told.exact.sum()),
            facts=len(self.facts),
            **self.divergence(
                lambda: edited_rows(self.memory, learned.edits),
                lambda: EditReads(self.finder, self.memory, learned.edits),
            ),
        )

    # One by one.

    def singly(self) -> None:
        """Teach facts one by one: as many models side by side, each with edits of its own."""
        # In the order in which learn_facts puts them into a batch.
        order = sorted(
            range(min(self.arguments.singles, len(self.facts))),
            key=lambda each: (-len(self.facts[each].ids), each),
        )
        facts = [self.facts[each] for each in order]
        rate = float(self.arguments.rates.split(",")[0])
        for per_token in (None, 16):
            chosen = choose_rows([self.candidates[each] for each in order], per_token)
            edits, steps = self.learn_singly(facts, chosen, rate)
            lines = []
            for fact, rows, own in zip(facts, chosen, edits, strict=True):
                if time.perf_counter() - self.begin > self.arguments.seconds:
                    break
                with edited_rows(self.memory, own):
                    told = tell_facts(self.model, [fact], margin=MARGIN, batch_tokens=4096)
                found = self.divergence(
                    lambda own=own: edited_rows(self.memory, own),
                    lambda own=own: EditReads(self.finder, self.memory, own),
                    self.arguments.single_tokens,
                )
                lines.append(
                    {
                        "rows": sum(map(len, rows.values())),
                        "predicted": self.predicted(rows),
                        "exact": bool(told.exact[0]),
                        **{name: found[name]["kl"] for name in TEXTS},
                        **{f"{name}-lookups": found[name]["lookups"] for name in TEXTS},
                    }
                )
            self.note(
                "singly",
                per_token=per_token,
                steps=steps,
                exact=sum(each["exact"] for each in lines),
                facts=len(lines),
                spearman={name: spearman(lines, "predicted", name) for name in TEXTS},
                spearman_lookups={
                    name: spearman(lines, "predicted", f"{name}-lookups") for name in TEXTS
                },
                kl={name: float(np.mean([each[name] for each in lines])) for name in TEXTS},
                lines=lines,
            )

    def learn_singly(
        self,
        facts: Sequence[FactTokens],
        chosen: Sequence[Mapping[int, NDArray[np.int64]]],
        rate: float,
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
            learned = learn_facts(
                self.model,
                self.memory,
                facts,
                {layer: own for layer, own in keys.items() if len(own)},
                steps=self.arguments.edit_steps,
                rate=rate,
                margin=MARGIN,
                batch_tokens=2**20,  # one batch
            )
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

    def by_lora(self) -> None:
        """Teach all facts by a LoRA adapter on all linear layers of the decoder."""
        import peft

        rates = [float(each) for each in self.arguments.lora_rates.split(",")]
        for rank, rate in [(rank, rate) for rank in (16,) for rate in rates]:
            if time.perf_counter() - self.begin > self.arguments.seconds:
                return
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
            **self.divergence(lambda: switched_on(adapted), lambda: None),
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


def some(
    fact: Candidates, per_token: int, draw: np.random.Generator
) -> dict[int, NDArray[np.int64]]:
    """Return as many rows of a fact as `choose_rows`, drawn at random."""
    keys = np.unique(np.stack((fact.layers, fact.rows), axis=1), axis=0)
    taken = keys[draw.permutation(len(keys))[: per_token * fact.tokens]]
    return {int(n): np.sort(taken[taken[:, 0] == n, 1]) for n in np.unique(taken[:, 0])}


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
