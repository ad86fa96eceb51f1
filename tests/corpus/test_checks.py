"""Labels: the value of a field travels with the tokens of its document, in every format."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tokenizers import PROSE

from engram_cli import write_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, HashStatsResult, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus import checks, stream
from engram_cli.corpus.base import NO_LABEL, CorpusOptions
from engram_cli.corpus.columns import labels_of
from engram_cli.corpus.encode import Encoder, make_encoder
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stream import TokenStream
from engram_cli.errors import CorpusError, InputError
from engram_cli.progress import SILENT
from engram_cli.stats.statistics.sources import TooManySources
from engram_cli.stats.stats_io import read_stats
from engram_cli.typed_json import as_json
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.tokenizer import load_tokenizer

LANGUAGES = ["en", "en", "de", None, "en", "", "de"]
TEXTS = [PROSE[at % len(PROSE)] * (1 + at % 2) if at != 4 else "" for at in range(len(LANGUAGES))]
ROWS = [{"meta": {"lang": each}, "text": text} for each, text in zip(LANGUAGES, TEXTS, strict=True)]


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> Iterator[Encoder]:
    made = make_encoder(load_tokenizer(tokenizer_file), "tokenizers", SILENT, size=None)
    yield made
    made.close()


def jsonl(path: Path, encode: Any) -> None:
    missing = [row if row["meta"]["lang"] != "" else {"text": row["text"]} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in missing))


def parquet(path: Path, encode: Any) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)


def ids(path: Path, encode: Any) -> None:
    rows = [{"meta": row["meta"], "input_ids": encode(row["text"])} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), path)


def arrow(path: Path, encode: Any) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        for batch in table.to_batches(max_chunksize=4):
            out.write_batch(batch)


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "a.jsonl": jsonl,
    "a.parquet": parquet,
    "b.parquet": ids,
    "a.arrow": arrow,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("block", [3, 2**18])
def test_every_token_knows_its_label(
    name: str,
    block: int,
    tmp_path: Path,
    tokenizer_file: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "BLOCK_TOKENS", block)
    monkeypatch.setattr(stream, "_FIRST_BATCH", 60)
    encode = load_tokenizer(tokenizer_file).encode
    WRITERS[name](tmp_path / name, encode)
    options = CorpusOptions(label="meta.lang")
    files = find_sources([tmp_path / name], options).files
    found = []
    for each in TokenStream(files, options, encoder).blocks():
        assert len(each.ids) == 0 or each.labels[0][0] == 0
        stops = [at for at, _ in each.labels[1:]] + [len(each.ids)]
        for (begin, label), end in zip(each.labels, stops, strict=True):
            assert begin < end
            found += [label] * (end - begin)
    expected = [
        label or NO_LABEL
        for label, text in zip(LANGUAGES, TEXTS, strict=True)
        for _ in encode(text)
    ]
    assert found == expected
    plain = CorpusOptions()
    assert {b.labels for b in TokenStream(files, plain, encoder).blocks()} == {()}


@pytest.fixture
def here(tmp_path: Path, tokenizer_file: Path, small_vocab: CompressedVocab) -> Path:
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    return tmp_path


def run(here: Path, name: str, **options: Any) -> HashStatsResult:
    return hash_stats(
        HashStatsRequest(
            sources=(here / name,),
            geometry=Geometry(heads=2, rows_per_head=(211,), layers=(1,), pad_id=2),
            workspace=Workspace(here),
            **options,
        )
    )


@pytest.mark.parametrize("holdout", [None, 0.4])
def test_sources_are_the_values_of_a_field(holdout: float | None, here: Path) -> None:
    encode = load_tokenizer(here).encode
    for name, write in WRITERS.items():
        write(here / name, encode)
    found = [
        run(here, name, group_by="meta.lang", holdout=holdout, out=here / f"{name}.stats")
        for name in WRITERS
    ]
    section = as_json(found[1].sections["sources"])
    if holdout is None:
        tokens = Counter[str]()
        for label, text in zip(LANGUAGES, TEXTS, strict=True):
            tokens[label or NO_LABEL] += len(encode(text))
        assert dict(zip(section["names"], section["tokens"], strict=True)) == tokens
        assert all(as_json(each.sections["sources"]) == section for each in found)
        assert section["names"] == ["(none)", "de", "en"]
    assert sum(section["tokens"]) == found[1].tokens
    assert read_stats(found[0].out).partials().keys() >= {"sources"}


def test_values_that_are_no_labels(here: Path) -> None:
    (here / "a.jsonl").write_text('{"text": "an apple", "a": [1], "b": 7, "c": true}\n')
    with pytest.raises(CorpusError, match=r"line 1: field 'a' is a list, not a label"):
        run(here, "a.jsonl", group_by="a")
    for field, name in (("b", "7"), ("c", "true")):
        result = run(here, "a.jsonl", group_by=field, force=True)
        assert as_json(result.sections["sources"])["names"] == [name]
    pq.write_table(pa.table({"text": ["an apple"], "a": [[1]]}), here / "a.parquet")
    with pytest.raises(CorpusError, match=r"column 'a' is list<.*no label"):
        run(here, "a.parquet", group_by="a", force=True)
    with pytest.raises(CorpusError, match=r"has no column 'z' to group by - its columns: text, a"):
        run(here, "a.parquet", group_by="z", force=True)
    (here / "a.txt").write_text("an apple")
    with pytest.raises(InputError, match=r"a\.txt cannot be grouped by 'z': text has no fields"):
        run(here, "a.txt", group_by="z", force=True)


def test_a_field_that_no_document_has_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before counting; one that a single document has, or has a null in, will do."""
    lines = [{"text": "an apple", "meta": {"lang": "en"}} for _ in range(3)]
    (here / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (here / "b.jsonl").write_text(json.dumps({"text": "a pear", "origin": None}) + "\n")
    with pytest.raises(CorpusError, match=r"no document has a field 'lang' .*fields: text, meta"):
        run(here, "a.jsonl", group_by="lang")
    assert not (here / "engram-stats").exists()
    for field in ("origin", "meta.lang"):
        result = run(here, "*.jsonl", group_by=field, force=True)
        assert NO_LABEL in as_json(result.sections["sources"])["names"]
    notes: list[str] = []
    monkeypatch.setattr(checks, "_PATIENCE", 2)
    monkeypatch.setattr(type(SILENT), "note", lambda self, text: notes.append(text))
    with pytest.raises(CorpusError, match="no document has a field 'lang'"):
        run(here, "*.jsonl", group_by="lang", force=True)
    assert "the first 2 documents have no field 'lang': looking in the others" in notes
    (here / "empty.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match="holds no token"):
        run(here, "empty.jsonl", group_by="lang", force=True)


def test_a_pipe_without_the_field_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.dumps({"text": "an apple"}).encode()
    for field, fails in (("lang", True), ("text", False)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        request = HashStatsRequest(
            sources=("-",),
            format="jsonl",
            group_by=field,
            geometry=Geometry(heads=2, rows_per_head=(211,), layers=(1,), pad_id=2),
            workspace=Workspace(here),
        )
        if fails:
            with pytest.raises(CorpusError, match="no document has a field 'lang'"):
                hash_stats(request)
            assert not (here / "engram-stats").exists()
        else:
            assert as_json(hash_stats(request).sections["sources"])["names"] == ["an apple"]


def test_too_many_values_are_told(here: Path) -> None:
    lines = (json.dumps({"text": "an apple", "id": f"n{at}"}) + "\n" for at in range(200))
    (here / "a.jsonl").write_text("".join(lines))
    with pytest.raises(TooManySources, match="more than 128 sources by id, such as 'n128'"):
        run(here, "a.jsonl", group_by="id")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None, 3]), ["1", NO_LABEL, "3"]),
        (pa.array([True, False, None]), ["true", "false", NO_LABEL]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array(["x" * 500]), ["x" * 120]),
    ],
)
def test_columns_of_other_types(column: pa.Array, expected: list[str]) -> None:
    assert labels_of(column, "a", "file") == expected
