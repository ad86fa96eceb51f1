"""build-table with a corpus: where tokens and vectors come from, what is said, what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.commands import build_table as building
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.init_corpus import FillPlan, FillRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import CorpusError, InputError, MismatchError, OutputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.table.lock import build_lock
from engram_cli.table.places import scratch_folder
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab

TEXT = "Only Alexander the Great could tame the horse Bucephalus. An apple fell from the tree.\n"


class Notes:
    """A listener that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None: ...

    def advance(self, amount: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def request_(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> BuildTableRequest:
    """A next-token table of random vectors from two texts."""
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT * 20)
    (tmp_path / "texts" / "b.txt").write_text(TEXT[::-1] * 5)
    here = Workspace(tmp_path)
    return BuildTableRequest(
        geometry=Geometry(rows_per_head=(60, 70), heads=2, layers=(1, 4)),
        vocab=here.vocab,
        out=here.table,
        dim=6,
        init="next-token",
        fill=FillRequest(
            sources=(tmp_path / "texts",),
            workspace=here,
            tokenizer=tokenizer_file,
            encoder="tokenizers",
        ),
    )


def checkpoint(folder: Path, tokens: int, **tensors: torch.Tensor) -> Path:
    """A model's folder with embeddings of `tokens` tokens."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(tokens, 16, generator=generator)
    save_file({"model.embed_tokens.weight": matrix, **tensors}, folder / "model.safetensors")
    return folder


def test_layout_corpus_and_vectors_are_resolved_once(
    request_: BuildTableRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(Geometry, "resolve")
    for name in ("find_sources", "find_vectors", "TableSpec"):
        count(building, name)
    once = ["resolve", "find_vectors", "find_sources", "TableSpec"]
    build_table(replace(request_, dry_run=True))
    assert calls == once
    calls.clear()
    build_table(request_)
    assert calls == once
    calls.clear()
    with pytest.raises(OutputError, match="already exists"):
        build_table(request_)
    assert calls == once


def test_a_table_says_what_it_was_filled_from(request_: BuildTableRequest) -> None:
    progress = Notes()
    result = build_table(request_, progress)
    table = open_table(request_.out)
    assert verify_table(request_.out).ok
    assert result.plan.fill is not None
    parameters = table.attributes["init"]["parameters"]
    assert parameters["tokens"] == result.plan.fill.tokens > 500
    assert parameters["documents"] == 2
    assert parameters["embeddings"] == {
        "kind": "random",
        "seed": "0",
        "std": 0.02,
        "generator": "splitmix64-box-muller-1",
    }
    assert any("in 2 passes within" in note for note in progress.notes)
    assert sorted(p.name for p in request_.out.parent.iterdir()) == [
        "engram-table.zarr",
        "engram-vocab.parquet",
        "texts",
    ]
    assert np.abs(table.rows(1, np.arange(40))).sum() > 0


def test_a_checkpoints_embeddings_are_projected(
    request_: BuildTableRequest, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    assert request_.fill is not None
    folder = checkpoint(tmp_path / "ckpt", small_vocab.vocab_size + 8)
    fill = replace(request_.fill, checkpoint=folder)
    build_table(replace(request_, fill=fill, init="token-mean"))
    table = open_table(request_.out)
    parameters = table.attributes["init"]["parameters"]["embeddings"]
    assert parameters["tensor"] == "model.embed_tokens.weight"
    assert parameters["hidden"] == 16
    assert "projection/4" in table.arrays
    few = checkpoint(tmp_path / "few", 9)
    with pytest.raises(MismatchError, match="embeddings have 9 rows"):
        build_table(replace(request_, fill=replace(fill, checkpoint=few), force=True))


def test_the_tokens_of_a_broken_run_are_used_again(
    request_: BuildTableRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("engram_cli.commands.build_table.build_store", fail)
        with pytest.raises(KeyboardInterrupt):
            build_table(request_)
    assert scratch_folder(request_.out).is_dir()
    progress = Notes()
    digest = build_table(request_, progress).digest
    assert any("tokens of this corpus from an earlier run" in note for note in progress.notes)
    again = replace(request_, out=request_.out.with_name("u.zarr"), threads=1)
    assert build_table(again).digest == digest
    (request_.out.parent / "texts" / "c.txt").write_text("more")
    other = replace(request_, out=request_.out.with_name("v.zarr"))
    assert build_table(other).digest != digest


def test_one_builder_at_a_time(request_: BuildTableRequest) -> None:
    with (
        build_lock(scratch_folder(request_.out)),
        pytest.raises(OutputError, match="is being built"),
    ):
        build_table(request_)


def test_a_plan_guesses_the_tokens_and_writes_nothing(request_: BuildTableRequest) -> None:
    before = sorted(request_.out.parent.rglob("*"))
    plan = build_table(replace(request_, dry_run=True)).plan
    assert plan.fill is not None
    assert plan.fill.guessed
    assert 500 < plan.fill.tokens < 2200
    assert sorted(request_.out.parent.rglob("*")) == before


def test_what_does_not_go_together_is_refused(request_: BuildTableRequest) -> None:
    fill = request_.fill
    assert fill is not None
    with pytest.raises(InputError, match="without a corpus"):
        replace(request_, fill=None)
    with pytest.raises(InputError, match="--init normal does not use a corpus"):
        replace(request_, init="normal")
    with pytest.raises(InputError, match="--init-seed does not apply"):
        replace(request_, init_seed=1)
    with pytest.raises(InputError, match="needs a checkpoint"):
        replace(fill, embedding_tensor="x")
    with pytest.raises(CorpusError):
        build_table(replace(request_, fill=replace(fill, sources=("none.txt",))))
    with pytest.raises(InputError, match="--memory 1000 - give 64Mi or more"):
        replace(fill, memory=1000)
    assert not request_.out.exists()


def test_the_command_line_takes_it_all(request_: BuildTableRequest) -> None:
    folder = request_.out.parent
    fill = request_.fill
    assert fill is not None
    arguments = ["build-table", "-w", str(folder), "--preset", "engram-v1-demo", "--dim", "4"]
    arguments += ["--rows-per-head", "64", "--layers", "3", "--init", "token-mean"]
    arguments += ["--corpus", str(folder / "texts"), "--tokenizer", str(fill.tokenizer)]
    arguments += ["--memory", "1GB", "--join-documents", "--embedding-seed", "7", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)["plan"]
    assert plan["fill"]["memory_bytes"] == 10**9
    assert plan["heads"] == 8
    table = open_table(folder / "engram-table.zarr")
    assert table.attributes["init"]["parameters"]["join_documents"] is True
    assert table.attributes["init"]["parameters"]["embeddings"]["seed"] == "7"
    wrong = CliRunner().invoke(app, ["build-table", "-w", str(folder), "--preset", "gpt"])
    assert wrong.exit_code == 2
    assert "engram-27b" in wrong.stderr


def test_what_little_filling_takes_is_not_called_nothing() -> None:
    plan = FillPlan(
        tokens=9_000, guessed=True, passes=1, memory_bytes=2_000_000_000, scratch_bytes=41_300
    )
    assert str(plan) == (
        "filling from about 9,000 tokens in 1 pass within 2.0 GB of memory; at most 41.3 kB on the "
        "disk until the end"
    )
