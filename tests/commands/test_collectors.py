"""What hash-stats may look at beside counting: asked for through a request, kept in the folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import PROSE

from engram_cli import write_vocab
from engram_cli.commands import hash_stats as command
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, HashStatsResult, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.engines import counting
from engram_cli.errors import InputError
from engram_cli.stats.collector_set import exact_memory
from engram_cli.stats.stats_io import read_stats
from engram_cli.typed_json import as_json
from engram_cli.vocab.compress import CompressedVocab

GEOMETRY = Geometry(heads=2, rows_per_head=(211,), layers=(1,), pad_id=2)


@pytest.fixture
def here(tmp_path: Path, tokenizer_file: Path, small_vocab: CompressedVocab) -> Path:
    """A workspace after compress-vocab, with a corpus of two folders."""
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    for index, text in enumerate((*PROSE, "The apple, the Apple, THE APPLE. ")):
        folder = tmp_path / "corpus" / ("odd" if index % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.txt").write_text(text * 2, encoding="utf-8")
    return tmp_path


def run(here: Path, name: str, **options: Any) -> HashStatsResult:
    return hash_stats(
        HashStatsRequest(
            sources=(here / "corpus",),
            geometry=GEOMETRY,
            workspace=Workspace(here),
            out=here / name,
            **options,
        )
    )


def test_exact_figures_from_a_small_sample(here: Path) -> None:
    complete = run(here, "complete")
    exact = run(here, "exact", sample_size=16, exact=True)
    sampled = run(here, "sampled", sample_size=16)
    assert exact.columns == complete.columns
    assert exact.orders == complete.orders
    for key in ("clean_heads", "top_ngrams", "worst_rows", "row_hits"):
        assert exact.sections[key] == complete.sections[key]
    assert sampled.columns != complete.columns
    for one, two in zip(
        read_stats(exact.out).samples(), read_stats(sampled.out).samples(), strict=True
    ):
        assert one.hashes.tolist() == two.hashes.tolist()
        assert one.threshold == two.threshold


def test_exact_counting_is_refused_before_the_corpus_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "available_memory", lambda: 900 * 10**6)
    monkeypatch.setattr(command, "exact_memory", lambda available, planned: 10**6)
    monkeypatch.setattr(counting, "CorpusCounter", None)
    with pytest.raises(
        InputError, match=r"all 2-grams, 0 so far, need 1\d\.\d MB or more, 1\.0 MB"
    ):
        run(here, "exact", exact=True)
    assert not (here / "exact").exists()


def test_how_much_exact_counting_may_take() -> None:
    assert exact_memory(None, 5) is None
    assert exact_memory(100, 200) == 0
    assert exact_memory(1000, 200) == 720


def test_sections_are_in_the_folder_and_in_the_result(here: Path) -> None:
    result = run(here, "all", compare_uncompressed=True, group_by="folder")
    document = read_stats(result.out).document
    assert document["sources"]["names"] == ["even", "odd"]
    assert sum(document["sources"]["tokens"]) == result.tokens
    raw = document["uncompressed"]["orders"]
    assert [entry["windows"] for entry in raw] == [result.tokens] * 2
    assert sum(e["distinct"] for e in raw) > sum(order.distinct for order in result.orders)
    assert document["uncompressed"] == as_json(result.sections["uncompressed"])
    plain = run(here, "plain")
    assert result.columns == plain.columns
    assert result.memory_bytes > plain.memory_bytes
    assert not {"uncompressed", "sources"} & read_stats(plain.out).document.keys()


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_no_section(threads: int, here: Path) -> None:
    options = {"compare_uncompressed": True, "group_by": "file", "exact": True, "sample_size": 30}
    one = run(here, "one", threads=threads, **options)
    two = run(here, "two", threads=2, **options)
    assert one.sections == two.sections
