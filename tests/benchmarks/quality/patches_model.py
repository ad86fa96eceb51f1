"""The model that patches.py teaches: its trained memory, the facts, and how an edit is measured."""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from invented_facts import invented_facts
from numpy.typing import NDArray
from tokenizers import Tokenizer
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
from engram_cli.training.edits.choice import ChosenRows, every_row, joined
from engram_cli.training.edits.divergence import EditReads, measure_divergence
from engram_cli.training.edits.influence import measure_influence
from engram_cli.training.edits.learning import (
    FactTokens,
    Learned,
    learn_facts,
    row_sizes,
    tell_facts,
)
from engram_cli.training.edits.rows import RowValues, find_candidates, row_finder
from engram_cli.training.model import prepare_model
from engram_cli.training.optimiser import make_optimiser

ORDERS, HEADS, DIM = (2, 3), 8, 32
MARGIN = 1.0
LENGTH, LEAST, CHUNK = 512, 128, 2**17
TEXTS = ("docs-held", "third-held")  # of the memory's domain, and of none


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


class Prepared:
    """The model with its trained memory, and the facts; keeps and prints what is found."""

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

    def is_late(self) -> bool:
        return time.perf_counter() - self.begin > self.arguments.seconds

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


def encoded(tokenizer: Any, prompt: str, target: str) -> FactTokens:
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    whole = tokenizer.encode(prompt + target, add_special_tokens=False).ids
    assert whole[: len(ids)] == ids
    return FactTokens(ids=np.array(whole, dtype=np.int64), first=len(ids))


def split_documents(ids: NDArray[Any], bos: int, eos: int) -> list[NDArray[Any]]:
    """Return the documents of a text: each begins with `bos`, or each ends with `eos`."""
    ends = ids == bos if ids[0] == bos else np.roll(ids == eos, 1)
    return np.split(ids, np.flatnonzero(ends[1:]) + 1)
