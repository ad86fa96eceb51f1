"""Files to blocks: documents, starts and places, however the corpus is cut."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpus.corpora import (
    DOCUMENTS,
    SEPARATOR,
    drain,
    save_ids,
    stream_of,
    write_ids_parquet,
    write_jsonl,
    write_parquet,
    write_text,
)
from small_tokenizers import wordpiece_tokenizer

from engram_cli.corpus import stream
from engram_cli.corpus import text as corpus_text
from engram_cli.corpus.base import Cuts, ReadPosition
from engram_cli.corpus.checks import needs_tokenizer
from engram_cli.corpus.encode import ReferenceEncoder
from engram_cli.errors import CorpusError
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> TokenizerFile:
    return load_tokenizer(tokenizer_file)


@pytest.mark.parametrize("batch", [1, 30, 2**18])
@pytest.mark.parametrize("block", [1, 7, 2**18])
def test_the_same_documents_in_every_format_give_the_same_tokens(
    batch: int,
    block: int,
    tokenizer: TokenizerFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "_FIRST_BATCH", batch)
    monkeypatch.setattr(stream, "BLOCK_TOKENS", block)
    wanted = [tokenizer.encode(text) for text in DOCUMENTS if text]
    lists = [tokenizer.encode(text) for text in DOCUMENTS]
    paths = [
        write_text(tmp_path / "a.txt", DOCUMENTS),
        write_jsonl(tmp_path / "b.jsonl", DOCUMENTS),
        write_ids_parquet(tmp_path / "c.parquet", lists),
        write_parquet(tmp_path / "d.parquet", DOCUMENTS),
    ]
    for path in paths:
        source, _ = stream_of([path], ReferenceEncoder(tokenizer), document_separator=SEPARATOR)
        assert drain(source) == wanted
    source, _ = stream_of(paths, ReferenceEncoder(tokenizer), document_separator=SEPARATOR)
    assert drain(source) == wanted * 4


def test_all_bytes_are_accounted_for(tokenizer: TokenizerFile, tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", DOCUMENTS)
    write_jsonl(tmp_path / "b.jsonl", DOCUMENTS)
    write_parquet(tmp_path / "c.parquet", DOCUMENTS)
    (tmp_path / "empty.txt").touch()
    source, files = stream_of([tmp_path], ReferenceEncoder(tokenizer))
    assert sum(block.size for block in source.blocks()) == sum(file.size or 0 for file in files)
    assert source.empty_files == 1


def test_empty_documents_are_counted_where_a_file_holds_others(
    tokenizer: TokenizerFile, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["", "apple", "", "tree", ""])
    write_jsonl(tmp_path / "b.jsonl", ["", ""])  # an empty file
    write_parquet(tmp_path / "c.parquet", ["", "", "apple"])
    source, _ = stream_of([tmp_path], ReferenceEncoder(tokenizer))
    assert len(drain(source)) == 3
    assert (source.empty_documents, source.empty_files) == (5, 1)


def test_a_position_of_before_empty_documents_were_counted_is_read() -> None:
    stored = asdict(ReadPosition(file=2, items=3))
    del stored["empty_documents"]
    assert ReadPosition.read(stored) == ReadPosition(file=2, items=3)


def test_a_document_cut_into_pieces_stays_one(
    tokenizer: TokenizerFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"line {number} of an apple tree\n" for number in range(40)]
    path = write_text(tmp_path / "a.txt", ["".join(lines)])
    whole = tokenizer.encode("".join(lines))
    monkeypatch.setattr(corpus_text, "PIECE", 100)
    monkeypatch.setattr(stream, "_FIRST_BATCH", 150)
    source, _ = stream_of([path, save_ids(tmp_path / "b.npy", [1, 2])], ReferenceEncoder(tokenizer))
    blocks = list(source.blocks())
    ids = np.concatenate([block.ids for block in blocks])
    starts = np.concatenate([block.starts for block in blocks])
    assert ids.tolist() == [*whole, 1, 2]  # this tokenizer ends a token at every line end
    assert np.flatnonzero(starts).tolist() == [0, len(whole)]
    assert source.cuts == Cuts(line_ends=source.cuts.total)
    assert source.cuts.total > 5
    places = [block.locate(index) for block in blocks for index in range(len(block.ids))]
    positions = [place.rpartition("position ")[2] for place in places]
    assert positions == [str(position) for position in [*range(len(whole)), 0, 1]]
    assert places[200].startswith(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "他说：“你好。”然后走了，没有回头。今天是3.14，圆周率日！" * 3,
        "https://example.org/a/b,c;d?e=f&g=don't(1.5)" * 3,
        "an apple tree\tand another one " * 5,
    ],
    ids=["marks", "address", "spaces"],
)
def test_cuts_outside_words_give_the_tokens_of_the_whole_text(
    text: str, deepseek_tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the pattern by which DeepSeek's tokenizer splits a text first."""
    tokenizer = load_tokenizer(deepseek_tokenizer_file)
    whole = tokenizer.encode(text)
    for limit in range(24, 40):
        monkeypatch.setattr(corpus_text, "PIECE", limit)
        parts = list(corpus_text.pieces(text))
        cuts = [corpus_text.cut_between(*pair) for pair in pairwise(parts)]
        assert len(cuts) > 1
        assert not any(cut.words for cut in cuts)
        assert [token for part in parts for token in tokenizer.encode(part)] == whole


def test_a_document_that_begins_with_a_piece_without_tokens_still_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wordpiece_tokenizer().save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(corpus_text, "PIECE", 10)
    monkeypatch.setattr(stream, "_FIRST_BATCH", 1)  # each piece a batch
    documents = ["apple", " " * 30 + "tree apple", " " * 30, "s"]
    path = write_text(tmp_path / "a.txt", documents)
    encoder = ReferenceEncoder(load_tokenizer(tmp_path / "tokenizer.json"))
    source, _ = stream_of([path], encoder, document_separator=SEPARATOR)
    assert drain(source) == [[10], [20, 10], [21]]


def test_places_name_line_and_position(tokenizer: TokenizerFile, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["apple", "", "tree"])
    source, _ = stream_of([path], ReferenceEncoder(tokenizer))
    (block,) = source.blocks()
    first = len(tokenizer.encode("apple"))
    assert block.locate(first) == f"{path}, line 3, position 0"
    assert block.locate(first - 1) == f"{path}, line 1, position {first - 1}"


def test_a_reader_that_fails_late_is_heard(tokenizer: TokenizerFile, tmp_path: Path) -> None:
    good = write_text(tmp_path / "a.txt", ["fine"])
    (tmp_path / "b.txt").write_bytes(b"not \xff fine")
    source, _ = stream_of([good, tmp_path / "b.txt"], ReferenceEncoder(tokenizer))
    with pytest.raises(CorpusError, match=r"b.txt, line 1: byte 4 is not UTF-8"):
        list(source.blocks())


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    source, files = stream_of([write_text(tmp_path / "a.txt", ["text"])])
    assert needs_tokenizer(files, source._options)
    with pytest.raises(CorpusError, match="no tokenizer was given"):
        list(source.blocks())


def test_arrays_need_no_tokenizer(tmp_path: Path) -> None:
    source, files = stream_of([save_ids(tmp_path / "a.npy", [[1, 2], [3, 4]])])
    assert not needs_tokenizer(files, source._options)
    assert drain(source) == [[1, 2], [3, 4]]


def test_an_empty_array_is_an_empty_file(tmp_path: Path) -> None:
    paths = [save_ids(tmp_path / "a.npy", []), save_ids(tmp_path / "b.npy", [5])]
    source, _ = stream_of(paths)
    assert drain(source) == [[5]]
    assert source.empty_files == 1


def test_a_consumer_that_stops_leaves_no_thread(tokenizer: TokenizerFile, tmp_path: Path) -> None:
    import threading

    before = threading.active_count()
    source, _ = stream_of(
        [write_jsonl(tmp_path / "a.jsonl", DOCUMENTS * 5000)], ReferenceEncoder(tokenizer)
    )
    blocks = source.blocks()
    next(blocks)
    blocks.close()
    assert threading.active_count() == before
