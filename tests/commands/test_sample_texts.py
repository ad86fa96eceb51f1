"""sample.parquet: the n-grams of a corpus as compressed ids and as text, for people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from commands.made import GEOMETRY, Made

from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.merge_stats import MergeStatsRequest, merge_stats
from engram_cli.stats.stats_io import read_stats


def test_texts_are_those_of_the_frequent_ngrams(made: Made) -> None:
    table = pq.read_table(made.stats / "sample.parquet")
    assert table.column_names == ["order", "hash", "count", "compressed_ids", "text"]
    texts = {tuple(row["compressed_ids"]): row["text"] for row in table.to_pylist()}
    found = json.loads((made.stats / "stats.json").read_bytes())["top_ngrams"]
    frequent = {tuple(each["tokens"]): each["text"] for own in found for each in own["ngrams"]}
    assert frequent.items() <= texts.items()
    assert "an apple" in {text.replace("␣", "") for text in texts.values()}


def test_without_a_vocabulary_there_is_no_text(made: Made, tmp_path: Path) -> None:
    other = made.folder / "other.txt"
    other.write_text("An apple fell on another tree.\n")
    request = HashStatsRequest(
        sources=(str(other),), geometry=GEOMETRY, vocab=made.vocab, out=tmp_path / "s",
        tokenizer=made.folder / "tokenizer.json",
    )  # fmt: skip
    hash_stats(request)
    parts = (made.stats, tmp_path / "s")
    whole = MergeStatsRequest(parts=parts, vocab=made.vocab, out=tmp_path / "with")
    merge_stats(whole)
    merge_stats(replace(whole, vocab=tmp_path / "none", out=tmp_path / "without"))
    named, bare = (
        pq.read_table(tmp_path / name / "sample.parquet") for name in ("with", "without")
    )
    assert named.drop_columns("text").equals(bare.drop_columns("text"))
    assert named["text"].null_count == 0
    assert bare["text"].null_count == len(bare)
    request = replace(request, sources=(str(made.folder / "corpus.txt"), str(other)))
    hash_stats(replace(request, out=tmp_path / "one"))
    assert pq.read_table(tmp_path / "one" / "sample.parquet").equals(named)


def test_statistics_of_earlier_versions_are_read(made: Made) -> None:
    before = read_stats(made.stats).samples()
    file = made.stats / "sample.parquet"
    table = pq.read_table(file).drop_columns("text")
    pq.write_table(table.rename_columns(["order", "hash", "count", "tokens"]), file)
    for now, then in zip(read_stats(made.stats).samples(), before, strict=True):
        assert (now.tokens == then.tokens).all()
