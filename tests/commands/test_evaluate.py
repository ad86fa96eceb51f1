"""evaluate: the losses of a checkpoint with a memory and an adapter, from texts and token ids."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from attaching import Listener
from commands.made import Made
from tiny_models import llama, logits, wake
from torch.nn import functional
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.commands.evaluate.command import evaluate
from engram_cli.commands.evaluate.known_ngrams import SHARING
from engram_cli.commands.evaluate.page import headline
from engram_cli.commands.evaluate.result import Breakdown, Difference, EvaluateResult
from engram_cli.commands.patch.command import apply_patches
from engram_cli.commands.requests.evaluation import EvaluateRequest
from engram_cli.commands.requests.patch import ApplyPatchRequest
from engram_cli.errors import (
    CorpusError,
    DependencyError,
    InputError,
    MismatchError,
    OutputError,
    TokenIdError,
)
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_rows import bundle_rows
from engram_cli.patches.making import make_patch
from engram_cli.patches.patch_file import write_patch
from engram_cli.runtime import attach, save_engram
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.tokenizer import load_tokenizer

TEXTS = (
    "Only Alexander the Great could tame the horse Bucephalus, and only the Great could fall.",
    "An apple fell from the café; 苹果 🍎 <b>apple</b> was closed.",
    "def apple(tree):\n    return tree.fruit + 2\n" * 3,
    "x",
    "An apple, an Apple and AN APPLE fell from the tree",
)
CONTEXT, STRIDE = 32, 20


@dataclass(frozen=True)
class Here:
    """A checkpoint with a memory that matters, the fresh bundle, and the texts in a file."""

    checkpoint: Path
    fresh: Path
    stats: Path
    texts: Path

    def run(self, *, listener: Listener | None = None, **options: Any) -> EvaluateResult:
        given: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "sources": (self.texts,),
            "context_length": CONTEXT,
            "stride": STRIDE,
        }
        return evaluate(EvaluateRequest(**given | options), listener or Listener())


@pytest.fixture(scope="module")
def here(
    tmp_path_factory: pytest.TempPathFactory, made_once: Made, small_vocab: CompressedVocab
) -> Here:
    folder = tmp_path_factory.mktemp("evaluate")
    checkpoint = folder / "ckpt"
    checkpoint.mkdir()
    shutil.copy(made_once.folder / "tokenizer.json", checkpoint)
    model = llama(small_vocab.vocab_size)
    model.save_pretrained(checkpoint)
    wake(attach(model, made_once.bundle))
    save_engram(model, checkpoint / "engram")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Here(checkpoint, made_once.bundle, made_once.stats, texts)


@pytest.fixture(scope="module")
def found(here: Here) -> EvaluateResult:
    return here.run()


@pytest.fixture(scope="module")
def ids(here: Here) -> list[list[int]]:
    tokenizer = load_tokenizer(here.checkpoint)
    return [tokenizer.encode(text) for text in TEXTS]


def plain(model: Any, ids: list[int]) -> list[float]:
    """The loss of each token but the first, in windows that a loop cuts."""
    losses: list[float] = []
    begin = 0
    while len(losses) < len(ids) - 1:
        window = torch.tensor(ids[begin : begin + CONTEXT])
        chances = functional.log_softmax(logits(model, window[None])[0].double(), dim=-1)
        own = -chances[:-1].gather(1, window[1:, None])[:, 0]
        fresh = begin + len(window) - 1 - len(losses)
        losses += own[len(own) - fresh :].tolist()
        begin += STRIDE
    return losses


def test_losses_are_those_of_a_plain_loop(
    here: Here, found: EvaluateResult, ids: list[list[int]], small_vocab: CompressedVocab
) -> None:
    model = llama(small_vocab.vocab_size)
    for name in ("bare", "memory"):
        if name == "memory":
            attach(model, here.checkpoint / "engram")
        losses = [loss for each in ids for loss in plain(model, each)]
        assert getattr(found, name) == pytest.approx(np.mean(losses), abs=1e-6)
    assert found.scored == len(losses) == sum(map(len, ids)) - len(ids)
    assert (found.documents, found.tokens) == (len(TEXTS), sum(map(len, ids)))
    assert max(map(len, ids)) > CONTEXT
    assert found.bytes == sum(len(text.encode()) for text in TEXTS)
    assert (found.lora, found.lora_memory, found.bos) == (None, None, None)
    for own in found.losses:
        nats = own.loss * found.scored
        assert own.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes)
        assert own.perplexity == pytest.approx(math.exp(own.loss))
        assert own.tokens_per_second > 0
    (difference,) = found.differences
    assert difference.mean == pytest.approx(found.memory - found.bare, abs=1e-12)
    assert difference.low is not None
    assert difference.low < difference.mean < difference.high
    assert [own.decoder_layer for own in found.gates] == [1, 2]
    assert all(0 < own.mean < 1 and own.added > 0 for own in found.gates)


def test_parts_add_up_to_the_whole(found: EvaluateResult) -> None:
    names = [own.name for own in found.breakdowns]
    assert names == ["before", "continued", "order-2", "order-3", "frequency", "position"]
    for own in found.breakdowns:
        assert sum(part.tokens for part in own.parts) == found.scored
        for name, whole in (("bare", found.bare), ("memory", found.memory)):
            total = sum(part.losses[name] * part.tokens for part in own.parts)
            assert total == pytest.approx(whole * found.scored, rel=1e-12)
        shares = sum(part.share[0] for part in own.parts)
        assert shares == pytest.approx(found.differences[0].mean, rel=1e-12)


def test_a_fresh_memory_makes_no_difference(here: Here) -> None:
    found = here.run(bundle=here.fresh)
    (difference,) = found.differences
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert found.memory == found.bare
    assert [own.added for own in found.gates] == [0.0, 0.0]
    assert (found.gaining, found.losing) == ((), ())


def test_known_ngrams_are_those_of_the_corpus(
    here: Here, found: EvaluateResult, made_once: Made, small_vocab: CompressedVocab
) -> None:
    """Against the set of all n-grams of the corpus, which the statistics' sample holds."""
    tokenizer = load_tokenizer(here.checkpoint)
    layout = read_bundle(here.checkpoint / "engram").spec.layout

    def grams(text: str, order: int) -> list[tuple[int, ...]]:
        own = small_vocab.lookup[tokenizer.encode(text)].tolist()
        padded = [layout.filler_id] * (order - 1) + own
        return [tuple(padded[at : at + order]) for at in range(len(own))]

    corpus = (made_once.folder / "corpus.txt").read_text()
    known = {order: set(grams(corpus, order)) for order in (2, 3)}
    # In one window a document, what precedes a token is not cut.
    counted = here.run(stats=here.stats, context_length=200, stride=100)
    assert (counted.statistics, counted.exact, found.exact) == (here.stats, True, False)
    wanted = {"before": [0, 0, 0], "continued": [0, 0, 0]}
    absent = 0
    for text in TEXTS:
        seen = [[gram in known[order] for gram in grams(text, order)] for order in (2, 3)]
        longest = [2 if both else int(two) for two, both in zip(*seen, strict=True)]
        for at in range(1, len(longest)):
            wanted["before"][longest[at - 1]] += 1
            wanted["continued"][longest[at]] += 1
            absent += not seen[1][at - 1]
    parts = {own.name: [part.tokens for part in own.parts] for own in counted.breakdowns}
    assert {name: parts[name] for name in wanted} == wanted
    assert parts["order-3"][0] == absent
    assert min(wanted["before"]) > 0
    assert sum(parts["order-3"][1:]) == counted.scored - absent
    # By hits alone some absent n-grams pass for known, and no known one for absent.
    by_hits = {own.name: own.parts[0].tokens for own in found.breakdowns}
    assert 0 < by_hits["order-3"] <= absent
    assert tuple(part.label for part in found.breakdowns[2].parts) == SHARING


def test_rows_alone_and_shared(here: Here, made_once: Made, small_vocab: CompressedVocab) -> None:
    """An n-gram is alone where its row has no more hits than the n-gram occurs."""
    from engram_cli.hashing.hasher import hash_tokens
    from engram_cli.stats.stats_io import read_stats

    tokenizer = load_tokenizer(here.checkpoint)
    statistics = read_stats(made_once.stats)
    layout = statistics.layout
    corpus = tokenizer.encode((made_once.folder / "corpus.txt").read_text())
    text = tokenizer.encode(TEXTS[4])
    compressed = small_vocab.lookup[corpus].tolist()
    codes = []
    for at in range(1, len(text) - 1):
        gram = small_vocab.lookup[text[at - 1 : at + 1]].tolist()
        times = sum(compressed[i : i + 2] == gram for i in range(len(compressed) - 1))
        hits = [
            statistics.hits(layer)[hash_tokens(layout, text, layer)[at, : layout.heads]]
            for layer in layout.layer_ids
        ]
        alone = float(np.mean(np.concatenate(hits) <= times))
        codes.append(0 if not times else 1 if alone == 1.0 else 2 if alone >= 0.5 else 3)
    one = here.texts.with_name("one.txt")
    one.write_text(TEXTS[4])
    found = here.run(sources=(one,), stats=made_once.stats, context_length=200, stride=100)
    parts = next(own for own in found.breakdowns if own.name == "order-2").parts
    counts = [part.tokens for part in parts]
    counts[3 if codes.count(3) < counts[3] else 0] -= 1  # the n-gram of the first token
    assert counts == np.bincount(codes, minlength=4).tolist()
    assert counts[1] > 0


WRITERS: dict[str, Callable[[Path, list[list[int]]], Any]] = {
    "text.parquet": lambda path, ids: pq.write_table(pa.table({"text": list(TEXTS)}), path),
    "ids.parquet": lambda path, ids: pq.write_table(pa.table({"input_ids": ids}), path),
    "ids.bin": lambda path, ids: (
        np.concatenate([[*own, 1] for own in ids]).astype("u2").tofile(path)
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_formats_give_the_same_losses(
    name: str, here: Here, found: EvaluateResult, ids: list[list[int]], tmp_path: Path
) -> None:
    path = tmp_path / name
    WRITERS[name](path, ids)
    if name == "ids.bin":  # the separator belongs to the document before it
        other = here.run(sources=(path,), document_end_id=1)
        assert other.tokens == found.tokens + len(TEXTS)
        assert other.documents == found.documents
        assert other.bytes is None
        return
    other = here.run(sources=(path,))
    assert (other.bare, other.memory) == (found.bare, found.memory)
    assert (other.documents, other.tokens) == (found.documents, found.tokens)
    assert other.bytes == (None if name == "ids.parquet" else found.bytes)


def test_rows_on_disk_give_the_same_losses(here: Here, found: EvaluateResult) -> None:
    listener = Listener()
    other = here.run(placement="disk", listener=listener)
    assert other.memory == pytest.approx(found.memory, abs=1e-6)
    assert any("0 MB of rows" in note for note in listener.notes)
    with pytest.raises(InputError, match="placement 'attic'"):
        here.run(placement="attic")


def test_limits_cut_the_text(here: Here, ids: list[list[int]]) -> None:
    first = here.run(max_documents=2)
    assert (first.documents, first.tokens) == (2, len(ids[0]) + len(ids[1]))
    most = len(ids[0]) + 5
    cut = here.run(max_tokens=most)
    assert (cut.documents, cut.tokens) == (2, most)
    cut_text = load_tokenizer(here.checkpoint).decode(ids[1][:5])
    assert cut.bytes == len(TEXTS[0].encode()) + len(cut_text.encode())
    assert here.run(max_tokens=len(ids[0])).documents == 1
    assert here.run(max_documents=100).tokens == sum(map(len, ids))


def test_a_token_before_each_document(here: Here, ids: list[list[int]], tmp_path: Path) -> None:
    found = here.run(bos="1")
    assert found.bos == 1
    assert found.scored == sum(map(len, ids))  # the document without text has nothing to predict
    document = json.loads((here.checkpoint / "tokenizer.json").read_text())
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }  # fmt: skip
    with_bos = tmp_path / "tokenizer.json"
    with_bos.write_text(json.dumps(document))
    listener = Listener()
    auto = here.run(tokenizer=with_bos, listener=listener)
    assert (auto.bos, auto.bare) == (1, found.bare)
    assert "each document begins with token 1" in listener.notes
    assert here.run(tokenizer=with_bos, bos="none").bos is None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_an_adapter_adds_two_variants(
    here: Here, found: EvaluateResult, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = llama(small_vocab.vocab_size)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    four = here.run(lora=tmp_path / "lora")
    assert (four.bare, four.memory) == (found.bare, found.memory)
    assert len({four.bare, four.memory, four.lora, four.lora_memory}) == 4
    assert [(own.variant, own.than) for own in four.differences] == [
        ("memory", "bare"), ("lora", "bare"), ("lora_memory", "bare"), ("lora_memory", "lora")
    ]  # fmt: skip
    parts = next(own for own in four.breakdowns if own.name == "before").parts
    assert [own.variant for own in parts[0].differences] == ["memory", "lora_memory"]
    alone = tmp_path / "ckpt"
    shutil.copytree(here.checkpoint, alone, ignore=shutil.ignore_patterns("engram"))
    without = here.run(checkpoint=alone, lora=tmp_path / "lora")
    assert (without.bare, without.lora, without.memory) == (four.bare, four.lora, None)
    assert without.gates == ()
    assert [own.name for own in without.breakdowns] == ["frequency", "position"]
    bare = here.run(checkpoint=alone)
    assert (bare.bare, bare.differences) == (four.bare, ())
    with pytest.raises(InputError, match="--stats without a memory"):
        here.run(checkpoint=alone, stats=here.stats)


@pytest.fixture(scope="module")
def patches(here: Here, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two patches of the memory's rows; both have the first half of them."""
    folder = tmp_path_factory.mktemp("patches")
    bundle = read_bundle(here.checkpoint / "engram")
    base, rows = bundle_rows(bundle), bundle.spec.layout.layer(1).rows
    draw = np.random.default_rng(0)
    for name, part in (("one", rows // 2), ("two", rows)):
        values = draw.standard_normal((part, bundle.spec.dim)).astype(np.float32)
        changed = {1: (np.arange(part), values)}
        write_patch(folder / f"{name}.patch.safetensors", make_patch(base, changed))
    return folder / "one.patch.safetensors", folder / "two.patch.safetensors"


@pytest.mark.parametrize("count", [1, 2])
def test_patches_give_the_losses_of_a_patched_copy(
    here: Here,
    found: EvaluateResult,
    patches: tuple[Path, Path],
    count: int,
    tmp_path: Path,
) -> None:
    bundle, chosen = here.checkpoint / "engram", patches[:count]
    before = (bundle / "engram.json").read_bytes()
    listener = Listener()
    three = here.run(patch=chosen, listener=listener)
    copy = tmp_path / "copy"
    apply_patches(ApplyPatchRequest(path=bundle, patches=chosen, out=copy))
    assert three.patched == here.run(bundle=copy).memory != found.memory
    assert (three.bare, three.memory, three.gates) == (found.bare, found.memory, found.gates)
    assert (bundle / "engram.json").read_bytes() == before
    assert [(own.variant, own.than) for own in three.differences] == [
        ("memory", "bare"), ("patched", "memory")
    ]  # fmt: skip
    parts = next(own for own in three.breakdowns if own.name == "before").parts
    assert [own.variant for own in parts[0].differences] == ["memory", "patched"]
    assert three.patches == chosen
    assert any("patch 2 wins" in note for note in listener.notes) is (count == 2)


def test_patches_on_rows_on_disk(here: Here, patches: tuple[Path, Path]) -> None:
    near, far = (here.run(patch=patches, placement=each) for each in ("hbm", "disk"))
    assert far.patched == pytest.approx(near.patched, abs=1e-6)
    assert far.memory == pytest.approx(near.memory, abs=1e-6)


def test_patches_that_do_not_fit(here: Here, patches: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    two = ApplyPatchRequest(path=here.checkpoint / "engram", patches=patches[1:], out=copy)
    apply_patches(two)
    with pytest.raises(MismatchError, match="--any-base"):
        here.run(bundle=copy, patch=patches[:1])
    other = here.run(bundle=copy, patch=patches[:1], any_base=True)
    assert other.patched != other.memory
    with pytest.raises(InputError, match="--any-base without --patch"):
        here.run(any_base=True)
    alone = tmp_path / "ckpt"
    shutil.copytree(here.checkpoint, alone, ignore=shutil.ignore_patterns("engram"))
    with pytest.raises(InputError, match="--patch without a memory"):
        here.run(checkpoint=alone, patch=patches[:1])


def test_the_command_shows_what_patches_do(here: Here, patches: tuple[Path, Path]) -> None:
    arguments = ["evaluate", str(here.checkpoint), str(here.texts), "--patch", str(patches[0])]
    done = CliRunner().invoke(app, [*arguments, "--patch", str(patches[1])])
    assert done.exit_code == 0, done.output
    assert "memory + patches − memory" in done.output
    assert re.search(r"patch 2 .*two\.patch\.safetensors", done.output)
    assert "the memory with patches and the memory" in " ".join(done.output.split())  # headline


def test_the_command_prints_json_and_writes_a_page(
    here: Here, found: EvaluateResult, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    arguments = ["evaluate", str(here.checkpoint), str(here.texts), "--report", str(page)]
    arguments += ["--context-length", str(CONTEXT), "--stride", str(STRIDE)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["bare"], document["memory"]) == (found.bare, found.memory)
    assert document["lora"] is None
    kinds = [own["kind"] for own in document["passages"]]
    assert kinds.count("beginning") == 3  # one of the first four has nothing to predict
    first = document["passages"][kinds.index("beginning")]
    assert len("".join(first["pieces"])) > 20
    assert TEXTS[0][1:].find("".join(first["pieces"])) in (0, 1, 2, 3)  # all but the first token
    text = page.read_text()
    assert "Where it helps most" in text
    assert "Where it hurts most" in text
    assert "tok n10" in text
    assert "<b>apple" not in text
    assert text.count("<script") == 6  # data, charts, two libraries, and two scripts of engram
    with pytest.raises(OutputError, match="already exists"):
        here.run(report=page)
    shown = CliRunner().invoke(app, [*arguments, "--force"])
    assert shown.exit_code == 0, shown.output
    for part in (
        "memory − model alone",
        "upper bounds",
        "2-grams before the token",
        "decoder layer 2",
        "perplexity",
    ):
        assert part in shown.output
    assert "interval" in shown.output


def test_memory_is_said_before_it_is_taken(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    here.run(listener=listener, max_documents=1)
    assert any(note.startswith("memory: ") and "of weights" in note for note in listener.notes)
    monkeypatch.setattr("engram_cli.commands.evaluate.model.available_memory", lambda: 10**6)
    with pytest.raises(InputError, match=r"memory: .* and cpu has 1 MB free"):
        here.run()


def test_what_cannot_be_evaluated(here: Here, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    ids = tmp_path / "ids.npy"
    np.save(ids, np.array([3, 4, 60_000], dtype=np.int64))
    for options, error, message in (
        ({"checkpoint": tmp_path}, InputError, r"has no config\.json"),
        ({"sources": (tmp_path / "none.txt",)}, CorpusError, "corpus not found"),
        ({"sources": (empty,)}, CorpusError, "no token to predict"),
        ({"sources": (ids,)}, TokenIdError, "60000|60,000"),
        ({"bundle": tmp_path}, InputError, "no bundle"),
        ({"lora": tmp_path}, InputError, "is no adapter"),
        ({"context_length": 300}, InputError, "the model takes 256 positions"),
        ({"stride": 32}, InputError, "a stride of 32"),
        ({"bos": "5000"}, InputError, "--bos 5000"),
        ({"device": "cuda:77"}, InputError, "--device cuda:77"),
        ({"device": "toaster"}, InputError, "--device toaster"),
        ({"dtype": "int3"}, InputError, "unknown dtype"),
        ({"stats": tmp_path}, InputError, "no statistics folder"),
    ):
        with pytest.raises(error, match=message):
            here.run(**options)


def test_a_tokenizer_of_another_memory(here: Here, tmp_path: Path) -> None:
    document = json.loads((here.checkpoint / "tokenizer.json").read_text())
    document["added_tokens"].append(document["added_tokens"][-1] | {"id": 999, "content": "Zebra"})
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(document))
    with pytest.raises(MismatchError, match="gives vocabulary"):
        here.run(tokenizer=other)


def test_without_transformers(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match="running the model needs transformers"):
        here.run()


def test_two_processes_find_what_one_finds(
    here: Here, found: EvaluateResult, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "engram_cli", "evaluate", str(here.checkpoint)]
    command += [str(here.texts), "--json", "--device", "cpu", "--report", str(tmp_path / "p.html")]
    command += ["--context-length", str(CONTEXT), "--stride", str(STRIDE)]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    common["MASTER_PORT"] = str(port)
    running = [
        subprocess.Popen(
            command,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (first, said), (second, _) = (each.communicate(timeout=120) for each in running)
    assert [each.returncode for each in running] == [0, 0], said
    assert second == ""
    document = json.loads(first)
    assert document["processes"] == 2
    for name in ("bare", "memory"):
        assert document[name] == pytest.approx(getattr(found, name), abs=1e-6)
    for name in ("documents", "tokens", "scored", "bytes"):
        assert document[name] == getattr(found, name)
    difference = document["differences"][0]
    assert difference["error"] == pytest.approx(found.differences[0].error, rel=1e-4)
    theirs: list[Breakdown] = document["breakdowns"]
    for own, other in zip(found.breakdowns, theirs, strict=True):
        assert [part.tokens for part in own.parts] == [p["tokens"] for p in other["parts"]]
    assert [own["tokens"] for own in document["gates"]] == [own.tokens for own in found.gates]
    assert (tmp_path / "p.html").is_file()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (
            -0.3,
            -0.1,
            "Compared with the model alone, the memory lowers the loss by 0.2000 nats",
        ),
        (-0.5, 0.1, "No difference between the memory and the model alone is certain"),
        (None, None, "too few documents to say how certain"),
    ],
)
def test_the_page_begins_with_what_the_first_difference_says(
    low: float | None, high: float | None, said: str
) -> None:
    found = Difference(variant="memory", than="bare", mean=-0.2, low=low, high=high)
    assert said in headline(found)
