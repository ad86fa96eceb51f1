"""evaluate: the losses of a checkpoint with a memory and an adapter, from texts and token ids."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from attaching import Listener
from commands.evaluated import CONTEXT, STRIDE, TEXTS, Evaluated
from commands.made import Made
from tiny_models import llama, logits
from torch.nn import functional

from engram_cli.commands.evaluate.known_ngrams import SHARING
from engram_cli.commands.evaluate.result import Breakdown, EvaluateResult
from engram_cli.errors import (
    InputError,
)
from engram_cli.formats.bundle import read_bundle
from engram_cli.runtime import attach
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def ids(evaluated: Evaluated) -> list[list[int]]:
    tokenizer = load_tokenizer(evaluated.checkpoint)
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
    evaluated: Evaluated,
    evaluation: EvaluateResult,
    ids: list[list[int]],
    small_vocab: CompressedVocab,
) -> None:
    model = llama(small_vocab.vocab_size)
    for name in ("bare", "memory"):
        if name == "memory":
            attach(model, evaluated.checkpoint / "engram")
        losses = [loss for each in ids for loss in plain(model, each)]
        assert getattr(evaluation, name) == pytest.approx(np.mean(losses), abs=1e-6)
    assert evaluation.scored == len(losses) == sum(map(len, ids)) - len(ids)
    assert (evaluation.documents, evaluation.tokens) == (len(TEXTS), sum(map(len, ids)))
    assert max(map(len, ids)) > CONTEXT
    assert evaluation.bytes == sum(len(text.encode()) for text in TEXTS)
    assert (evaluation.lora, evaluation.lora_memory, evaluation.bos) == (None, None, None)
    for own in evaluation.losses:
        nats = own.loss * evaluation.scored
        assert own.bits_per_byte == pytest.approx(nats / math.log(2) / evaluation.bytes)
        assert own.perplexity == pytest.approx(math.exp(own.loss))
        assert own.tokens_per_second > 0
    (difference,) = evaluation.differences
    assert difference.mean == pytest.approx(evaluation.memory - evaluation.bare, abs=1e-12)
    assert difference.low is not None
    assert difference.low < difference.mean < difference.high
    assert [own.decoder_layer for own in evaluation.gates] == [1, 2]
    assert all(0 < own.mean < 1 and own.added > 0 for own in evaluation.gates)


def test_parts_add_up_to_the_whole(evaluation: EvaluateResult) -> None:
    names = [own.name for own in evaluation.breakdowns]
    assert names == ["before", "continued", "order-2", "order-3", "frequency", "position"]
    for own in evaluation.breakdowns:
        assert sum(part.tokens for part in own.parts) == evaluation.scored
        for name, whole in (("bare", evaluation.bare), ("memory", evaluation.memory)):
            total = sum(part.losses[name] * part.tokens for part in own.parts)
            assert total == pytest.approx(whole * evaluation.scored, rel=1e-12)
        shares = sum(part.share[0] for part in own.parts)
        assert shares == pytest.approx(evaluation.differences[0].mean, rel=1e-12)


def test_a_fresh_memory_makes_no_difference(evaluated: Evaluated) -> None:
    found = evaluated.run(bundle=evaluated.fresh)
    (difference,) = found.differences
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert found.memory == found.bare
    assert [own.added for own in found.gates] == [0.0, 0.0]
    assert (found.gaining, found.losing) == ((), ())


def test_known_ngrams_are_those_of_the_corpus(
    evaluated: Evaluated, evaluation: EvaluateResult, made_once: Made, small_vocab: CompressedVocab
) -> None:
    """Against the set of all n-grams of the corpus, which the statistics' sample holds."""
    tokenizer = load_tokenizer(evaluated.checkpoint)
    layout = read_bundle(evaluated.checkpoint / "engram").spec.layout

    def grams(text: str, order: int) -> list[tuple[int, ...]]:
        own = small_vocab.lookup[tokenizer.encode(text)].tolist()
        padded = [layout.filler_id] * (order - 1) + own
        return [tuple(padded[at : at + order]) for at in range(len(own))]

    corpus = (made_once.folder / "corpus.txt").read_text()
    known = {order: set(grams(corpus, order)) for order in (2, 3)}
    # In one window a document, what precedes a token is not cut.
    counted = evaluated.run(stats=evaluated.stats, context_length=200, stride=100)
    assert (counted.statistics, counted.exact, evaluation.exact) == (evaluated.stats, True, False)
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
    by_hits = {own.name: own.parts[0].tokens for own in evaluation.breakdowns}
    assert 0 < by_hits["order-3"] <= absent
    assert tuple(part.label for part in evaluation.breakdowns[2].parts) == SHARING


def test_rows_alone_and_shared(
    evaluated: Evaluated, made_once: Made, small_vocab: CompressedVocab
) -> None:
    """An n-gram is alone where its row has no more hits than the n-gram occurs."""
    from engram_cli.hashing.hasher import hash_tokens
    from engram_cli.stats.stats_io import read_stats

    tokenizer = load_tokenizer(evaluated.checkpoint)
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
    one = evaluated.texts.with_name("one.txt")
    one.write_text(TEXTS[4])
    found = evaluated.run(sources=(one,), stats=made_once.stats, context_length=200, stride=100)
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
    name: str,
    evaluated: Evaluated,
    evaluation: EvaluateResult,
    ids: list[list[int]],
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    WRITERS[name](path, ids)
    if name == "ids.bin":  # the separator belongs to the document before it
        other = evaluated.run(sources=(path,), document_end_id=1)
        assert other.tokens == evaluation.tokens + len(TEXTS)
        assert other.documents == evaluation.documents
        assert other.bytes is None
        return
    other = evaluated.run(sources=(path,))
    assert (other.bare, other.memory) == (evaluation.bare, evaluation.memory)
    assert (other.documents, other.tokens) == (evaluation.documents, evaluation.tokens)
    assert other.bytes == (None if name == "ids.parquet" else evaluation.bytes)


def test_rows_on_disk_give_the_same_losses(
    evaluated: Evaluated, evaluation: EvaluateResult
) -> None:
    listener = Listener()
    other = evaluated.run(placement="disk", listener=listener)
    assert other.memory == pytest.approx(evaluation.memory, abs=1e-6)
    assert any("0 MB of rows" in note for note in listener.notes)
    with pytest.raises(InputError, match="placement 'attic'"):
        evaluated.run(placement="attic")


def test_limits_cut_the_text(evaluated: Evaluated, ids: list[list[int]]) -> None:
    first = evaluated.run(max_documents=2)
    assert (first.documents, first.tokens) == (2, len(ids[0]) + len(ids[1]))
    most = len(ids[0]) + 5
    cut = evaluated.run(max_tokens=most)
    assert (cut.documents, cut.tokens) == (2, most)
    cut_text = load_tokenizer(evaluated.checkpoint).decode(ids[1][:5])
    assert cut.bytes == len(TEXTS[0].encode()) + len(cut_text.encode())
    assert evaluated.run(max_tokens=len(ids[0])).documents == 1
    assert evaluated.run(max_documents=100).tokens == sum(map(len, ids))


def test_a_token_before_each_document(
    evaluated: Evaluated, ids: list[list[int]], tmp_path: Path
) -> None:
    found = evaluated.run(bos="1")
    assert found.bos == 1
    assert found.scored == sum(map(len, ids))  # the document without text has nothing to predict
    document = json.loads((evaluated.checkpoint / "tokenizer.json").read_text())
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
    auto = evaluated.run(tokenizer=with_bos, listener=listener)
    assert (auto.bos, auto.bare) == (1, found.bare)
    assert "each document begins with token 1" in listener.notes
    assert evaluated.run(tokenizer=with_bos, bos="none").bos is None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_an_adapter_adds_two_variants(
    evaluated: Evaluated, evaluation: EvaluateResult, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = llama(small_vocab.vocab_size)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    four = evaluated.run(lora=tmp_path / "lora")
    assert (four.bare, four.memory) == (evaluation.bare, evaluation.memory)
    assert len({four.bare, four.memory, four.lora, four.lora_memory}) == 4
    assert [(own.variant, own.than) for own in four.differences] == [
        ("memory", "bare"), ("lora", "bare"), ("lora_memory", "bare"), ("lora_memory", "lora")
    ]  # fmt: skip
    parts = next(own for own in four.breakdowns if own.name == "before").parts
    assert [own.variant for own in parts[0].differences] == ["memory", "lora_memory"]
    alone = tmp_path / "ckpt"
    shutil.copytree(evaluated.checkpoint, alone, ignore=shutil.ignore_patterns("engram"))
    without = evaluated.run(checkpoint=alone, lora=tmp_path / "lora")
    assert (without.bare, without.lora, without.memory) == (four.bare, four.lora, None)
    assert without.gates == ()
    assert [own.name for own in without.breakdowns] == ["frequency", "position"]
    bare = evaluated.run(checkpoint=alone)
    assert (bare.bare, bare.differences) == (four.bare, ())
    with pytest.raises(InputError, match="--stats without a memory"):
        evaluated.run(checkpoint=alone, stats=evaluated.stats)


def test_two_processes_find_what_one_finds(
    evaluated: Evaluated, evaluation: EvaluateResult, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "engram_cli", "evaluate", str(evaluated.checkpoint)]
    command += [
        str(evaluated.texts),
        "--json",
        "--device",
        "cpu",
        "--report",
        str(tmp_path / "p.html"),
    ]
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
        assert document[name] == pytest.approx(getattr(evaluation, name), abs=1e-6)
    for name in ("documents", "tokens", "scored", "bytes"):
        assert document[name] == getattr(evaluation, name)
    difference = document["differences"][0]
    assert difference["error"] == pytest.approx(evaluation.differences[0].error, rel=1e-4)
    theirs: list[Breakdown] = document["breakdowns"]
    for own, other in zip(evaluation.breakdowns, theirs, strict=True):
        assert [part.tokens for part in own.parts] == [p["tokens"] for p in other["parts"]]
    assert [own["tokens"] for own in document["gates"]] == [own.tokens for own in evaluation.gates]
    assert (tmp_path / "p.html").is_file()
