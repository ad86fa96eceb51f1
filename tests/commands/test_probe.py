"""The probe: its counted models are those of plain Counters, and a roomy table knows as much."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from table.filled import write_corpus

from engram_cli.cli.reading import probe_parts
from engram_cli.cli.terminal import Terminal
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.init_corpus import FillRequest
from engram_cli.commands.probe import ProbeRequest, probe
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError, MismatchError
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.inits.corpus.pairs import TokenPairs
from engram_cli.table.inits.corpus.tokens import TokenFile, split_starts
from engram_cli.table.probe.counted import count_followers, first_choices, witten_bell
from engram_cli.table.probe.reading import ask, head_weights

VOCAB = 300


def sentences(seed: int, count: int) -> np.ndarray:
    """Ids of a language of 40 words whose next one is mostly decided by the last two."""
    generator = np.random.default_rng(seed)
    ids = [1, 2]
    for _ in range(count):
        usual = (3 * ids[-1] + 5 * ids[-2]) % 40
        ids.append(usual if generator.random() < 0.8 else int(generator.integers(0, 40)))
    return np.array(ids, dtype=np.uint16)


@pytest.fixture
def request_(tmp_path: Path) -> ProbeRequest:
    """A table of raw ids, with more rows than there are n-grams."""
    sentences(0, 6000).tofile(tmp_path / "corpus.bin")
    sentences(1, 900).tofile(tmp_path / "heldout.bin")
    geometry = Geometry(
        scheme="qwen-ple", vocab_size=VOCAB, eos_id=299, rows_per_head=(8209,), heads=2, layers=(1,)
    )
    fill = FillRequest(
        sources=(tmp_path / "corpus.bin",),
        format="nanogpt",
        ids_dtype="uint16",
        document_end_id=299,
        workspace=Workspace(tmp_path),
    )
    out = tmp_path / "t.zarr"
    vocab = tmp_path / "none.parquet"
    build_table(
        BuildTableRequest(
            geometry=geometry, vocab=vocab, out=out, dim=32, init="next-token", fill=fill
        )
    )
    return ProbeRequest(
        table=out, heldout=(tmp_path / "heldout.bin",), fill=fill, vocab=vocab, positions=400
    )


def test_a_roomy_table_knows_what_a_counted_model_knows(request_: ProbeRequest) -> None:
    result = probe(request_)
    found = {row.model: row for row in result.rows}
    assert result.positions + result.fitted == 400
    exact = found["exact 3-grams, backing off"]
    assert exact.top1 > 0.6 > 0.2 > found["unigram"].top1
    assert result.of_exact > 0.95
    assert found["table, combined"].top1 >= found["table, 3-grams"].top1 - 0.03
    perplexity = found["table, combined"].perplexity
    assert perplexity is not None
    assert perplexity < 2 * (exact.perplexity or 0)
    assert probe(request_) == result


def test_orders_combined_say_more_than_either_alone(tmp_path: Path) -> None:
    """Where the last token is odd three tokens decide, else two; many n-grams share a row."""
    for name, seed, count in (("corpus", 0, 30_000), ("heldout", 1, 1200)):
        generator = np.random.default_rng(seed)
        ids = [1, 2, 3]
        for _ in range(count):
            usual = 3 * ids[-1] + 5 * ids[-2] + 7 * ids[-3] * (ids[-1] % 2)
            ids.append(usual % 40 if generator.random() < 0.8 else int(generator.integers(0, 40)))
        np.array(ids, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    geometry = Geometry(
        scheme="qwen-ple", vocab_size=VOCAB, eos_id=299, rows_per_head=(701,), heads=4, layers=(1,)
    )
    fill = FillRequest(
        sources=(tmp_path / "corpus.bin",),
        format="nanogpt",
        ids_dtype="uint16",
        document_end_id=299,
        workspace=Workspace(tmp_path),
    )
    table, vocab = tmp_path / "t.zarr", tmp_path / "none.parquet"
    build_table(
        BuildTableRequest(
            geometry=geometry, vocab=vocab, out=table, dim=32, init="next-token", fill=fill
        )
    )
    held = (tmp_path / "heldout.bin",)
    result = probe(ProbeRequest(table=table, heldout=held, fill=fill, vocab=vocab, positions=1200))
    found = {row.model: row.top1 for row in result.rows}
    alone = [found[f"table, {order}-grams"] for order in (2, 3)]
    for order in (2, 3):
        assert found[f"table, {order}-grams"] > found[f"table, {order}-grams, one head"] + 0.02
    assert found["table, combined"] > max(alone) + 0.05
    assert result.of_exact > 0.85
    assert len(result.weights) == 14


def test_heads_are_weighted_by_the_inverse_variance_of_their_counts() -> None:
    """Counts estimated from a row err by hits x length; a row that nothing fell on says "new"."""
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(40, 6, 16)).astype(np.float32)
    hits = generator.integers(1, 900, (40, 6)).astype(np.float32)
    rows[5, 4], hits[5, 4] = 0, 1
    squares = np.linspace(1, 3, 6).astype(np.float32)
    got = head_weights(rows, hits, squares, heads=3)
    for order in (slice(0, 3), slice(3, 6)):
        lengths = (rows[:, order].astype(np.float64) ** 2).sum(axis=2) / squares[order]
        variance = hits[:, order] ** 2 * np.maximum(lengths, 1e-6)
        expected = hits[:, order] / variance
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(got[:, order], expected, rtol=1e-4)
    assert got[5, 4] > 0.999


def test_the_figures_fit_a_terminal(
    request_: ProbeRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    Terminal().show(*probe_parts(probe(request_)))
    out = capsys.readouterr().out
    assert "table, combined" in out
    assert max(map(len, out.splitlines())) <= 100


def test_counts_are_those_of_plain_counters(tmp_path: Path) -> None:
    sizes = {"rows_per_head": 50, "heads": 2, "layers": (1,)}
    layout = hash_layout("qwen-ple", vocab_size=90, eos_id=1, **sizes)
    train = write_corpus(tmp_path / "train", layout)
    what = TokenPairs(layout=layout, file=train, follow=True, joined=False)
    questions = ask(layout, 1, train, 500, False)
    unigrams = what.follower_counts()
    models = _counters(train, 1)
    raw, starts = split_starts(np.array(train.map()))
    follows = np.flatnonzero(np.append(~starts[1:], False))
    chosen = follows[np.linspace(0, len(follows) - 1, 500).astype(np.int64)]
    contexts = _contexts(raw, starts, 1)
    orders = []
    for order in (2, 3):
        followers = count_followers(
            what,
            1,
            order,
            questions.contexts[order],
            questions.truth,
            unigrams,
            scratch=tmp_path,
            memory=2**20,
        )
        orders.append(followers)
        for place, at in enumerate(chosen.tolist()):
            counter = models[order][contexts[order][at]]
            assert followers.total[place] == counter.total()
            assert followers.kinds[place] == len(counter)
            assert followers.of_truth[place] == counter[int(raw[at + 1])]
            assert counter[int(followers.first[place])] == max(counter.values())
    assert np.array_equal(first_choices(orders, unigrams), orders[1].first)
    chances = witten_bell(orders, questions.truth, unigrams)
    assert ((chances > 0) & (chances < 1)).all()


def _contexts(raw: np.ndarray, starts: np.ndarray, eos: int) -> dict[int, list[tuple[int, ...]]]:
    """The n-gram that ends at each position, cut at the start of its segment, one by one."""
    found: dict[int, list[tuple[int, ...]]] = {2: [], 3: []}
    segment: list[int] = []
    for token, start in zip(raw.tolist(), starts.tolist(), strict=True):
        segment = [token] if start or (segment and segment[-1] == eos) else [*segment, token]
        for order in (2, 3):
            seen = segment[-order:]
            found[order].append(tuple([eos] * (order - len(seen)) + seen))
    return found


def _counters(file: TokenFile, eos: int) -> dict[int, dict[tuple[int, ...], Counter[int]]]:
    raw, starts = split_starts(np.array(file.map()))
    models: dict[int, dict[tuple[int, ...], Counter[int]]] = {}
    for order, contexts in _contexts(raw, starts, eos).items():
        models[order] = defaultdict(Counter)
        for at, context in enumerate(contexts[:-1]):
            if not starts[at + 1]:
                models[order][context][int(raw[at + 1])] += 1
    return models


def test_what_did_not_fill_the_table_is_refused(request_: ProbeRequest, tmp_path: Path) -> None:
    other = replace(request_.fill, sources=request_.heldout)
    with pytest.raises(MismatchError, match="was filled from 6,002 tokens"):
        probe(replace(request_, fill=other))
    sentences(2, 20).tofile(tmp_path / "short.bin")
    with pytest.raises(InputError, match="positions"):
        probe(replace(request_, heldout=(tmp_path / "short.bin",)))
    with pytest.raises(InputError, match="--positions 39"):
        replace(request_, positions=39)
    normal = tmp_path / "normal.zarr"
    geometry = Geometry(scheme="qwen-ple", vocab_size=VOCAB, rows_per_head=(50,), eos_id=9)
    build_table(BuildTableRequest(geometry=geometry, out=normal, vocab=request_.vocab))
    with pytest.raises(InputError, match="filled with --init normal"):
        probe(replace(request_, table=normal))


def test_a_checkpoints_table_is_read_with_that_checkpoint(
    request_: ProbeRequest, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        matrix = torch.randn(VOCAB, 48, generator=generator)
        save_file({"lm_head.weight": matrix}, tmp_path / name / "model.safetensors")
    fill = replace(request_.fill, checkpoint=tmp_path / "a")
    geometry = Geometry(
        scheme="qwen-ple", vocab_size=VOCAB, eos_id=299, rows_per_head=(8209,), heads=2, layers=(1,)
    )
    out = tmp_path / "c.zarr"
    build_table(
        BuildTableRequest(
            geometry=geometry, vocab=request_.vocab, out=out, dim=32, init="next-token", fill=fill
        )
    )
    asked = replace(request_, table=out, fill=fill)
    assert probe(asked).of_exact > 0.9
    with pytest.raises(InputError, match="give that checkpoint with --checkpoint"):
        probe(replace(asked, fill=request_.fill))
    with pytest.raises(MismatchError, match="the embeddings of another checkpoint"):
        probe(replace(asked, fill=replace(fill, checkpoint=tmp_path / "b")))
