"""The artifacts of a small corpus, made once: what looks at artifacts is tested on copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from attaching import LLAMA, build, configure
from commands.evaluated import Evaluated, make_evaluated
from commands.jobs import make_base
from commands.made import Made, make
from small_tokenizers import PROSE
from test_files import contents

from engram_cli.commands.evaluate.result import EvaluateResult
from engram_cli.corpus import stream
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Made:
    """The artifacts, not to be changed."""
    return make(tmp_path_factory.mktemp("made") / "work", tokenizer_file, small_vocab)


@pytest.fixture
def made(made_once: Made, tmp_path: Path) -> Made:
    """A copy of the artifacts, to be damaged."""
    folder = tmp_path / "work"
    shutil.copytree(made_once.folder, folder)
    return Made(
        folder=folder,
        **{
            name: folder / getattr(made_once, name).relative_to(made_once.folder)
            for name in ("vocab", "stats", "table", "bundle")
        },
    )


@pytest.fixture
def corpus_workspace(tmp_path: Path, tokenizer_file: Path, small_vocab: CompressedVocab) -> Path:
    """A workspace after compress-vocab, with a small corpus of three files, one of them empty."""
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, text in enumerate(PROSE[:2]):
        (corpus / f"{index}.txt").write_text(text * 3, encoding="utf-8")
    (corpus / "empty.md").touch()
    return tmp_path


@pytest.fixture
def batches(
    tmp_path: Path,
    tokenizer_file: Path,
    small_vocab: CompressedVocab,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A workspace with a corpus of twelve files, each of them a batch."""
    monkeypatch.setattr(stream, "_FIRST_BATCH", 1)
    monkeypatch.setattr(stream, "_FULL_BATCH", 1)
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index in range(12):
        text = f"{index} " + PROSE[index % len(PROSE)] * (1 + index % 3)
        (corpus / f"{index:02}.txt").write_text(text, encoding="utf-8")
    (corpus / "05b.md").touch()
    lines = [json.dumps({"text": text}) + "\n" for text in PROSE * 4]
    (corpus / "lines.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    """A table of two layers, not to be changed."""
    return build(tmp_path_factory.mktemp("table") / "engram-table.zarr", small_vocab)


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer_file: Path) -> Path:
    """A checkpoint of four layers without weights."""
    folder = tmp_path / "ckpt"
    folder.mkdir()
    shutil.copy(tokenizer_file, folder)
    configure(folder, LLAMA)
    return folder


@pytest.fixture(scope="session")
def jobs_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the commands of `jobs.py` read; who changes it puts it back."""
    folder = tmp_path_factory.mktemp("base") / "base"
    make_base(folder)
    return folder


@pytest.fixture
def here(jobs_base: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `jobs_base`, whose inputs have their bytes at the end."""
    shutil.copytree(jobs_base, tmp_path / "here")
    yield tmp_path / "here"
    kept = contents(tmp_path / "here")
    assert {name: kept.get(name) for name in contents(jobs_base)} == contents(jobs_base)


@pytest.fixture(scope="session")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, made_once: Made, small_vocab: CompressedVocab
) -> Evaluated:
    """A checkpoint with a memory and texts, not to be changed."""
    return make_evaluated(tmp_path_factory.mktemp("evaluate"), made_once, small_vocab)


@pytest.fixture(scope="session")
def evaluation(evaluated: Evaluated) -> EvaluateResult:
    """What evaluate finds on all texts."""
    return evaluated.run()
