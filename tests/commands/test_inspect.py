"""inspect: each kind by its content, the figures of its rows, and a page of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.made import Made

from engram_cli.commands.convert.command import ConvertRequest, convert_table
from engram_cli.commands.inspect import page
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.inspect.page import inspection_views
from engram_cli.commands.inspect.result import InspectResult, LayerRows
from engram_cli.errors import InputError, OutputError
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.scan.contents import Duplicates, Twins
from engram_cli.table.store import open_table
from engram_cli.view import Estimate, Table


def inspected(path: Path, **options: Any) -> InspectResult:
    return inspect(InspectRequest(path=path, threads=2, **options))


def duplicates(**others: Any) -> Duplicates:
    twins = (Twins(rows=3, first=1, second=2),)
    known: dict[str, Any] = {"rows": 100, "distinct": 95.0, "distinct_error": 0.0}
    return Duplicates(**{**known, "twin_share": 0.07, "twins": twins, **others})


def said(result: InspectResult) -> dict[str, str]:
    return dict(result.facts)


def test_a_table_is_told_with_its_layout(made_once: Made) -> None:
    result = inspected(made_once.table)
    layout = open_table(made_once.table).layout
    assert result.kind == "table"
    assert result.complete
    assert said(result)["rows"].endswith("of 6 x float32")
    assert [c.modulus for c in result.layout] == [m for e in layout.layers for m in e.moduli]
    assert [c.offset for c in result.layout] == [o for e in layout.layers for o in e.offsets]
    assert [int(m) for m in result.multipliers[1][1]] == list(layout.layers[1].multipliers)
    files = [file for file in made_once.table.rglob("*") if file.is_file()]
    assert result.stored_bytes == sum(file.stat().st_size for file in files)
    assert {digest.name: digest.matches for digest in result.digests} == {
        "table": None,
        "layout": True,
        "vocabulary": True,
    }
    assert {digest.name: digest.must_match for digest in result.digests}["layout"] == str(
        made_once.stats
    )
    unread = inspected(made_once.table, rows=False)
    assert {digest.name: digest.matches for digest in unread.digests}["layout"] is None


def test_a_converted_table_says_from_what(made_once: Made, tmp_path: Path) -> None:
    assert "converted" not in said(inspected(made_once.table, rows=False))
    out = tmp_path / "small.zarr"
    convert_table(ConvertRequest(source=made_once.table, dtype="int8", out=out))
    digest = open_table(made_once.table).digest.removeprefix("sha256:")[:12]
    told = said(inspected(out, rows=False))["converted"]
    assert told == f"from a table of float32 with digest {digest}"


@pytest.mark.parametrize("what", ["table", "bundle", "stats"])
def test_hits_and_the_hottest_rows_are_those_counted(made_once: Made, what: str) -> None:
    result = inspected(getattr(made_once, what), hottest=3)
    statistics = read_stats(made_once.stats)
    assert result.stats == made_once.stats
    for column in result.columns:
        entry = statistics.layout.layer(column.layer)
        at = statistics.layout.orders.index(column.order) * 4 + column.head
        begin = entry.offsets[at]
        own = statistics.hits(column.layer)[begin : begin + entry.moduli[at]]
        assert column.hit_rows == np.count_nonzero(own)
        assert (column.hits, column.max_hits) == (own.sum(), own.max())
    assert len(result.hottest) == 2 * 2 * 3
    for hot in result.hottest:
        best = max(c.max_hits or 0 for c in result.columns if c.order == hot.order)
        assert hot.hits <= best
        # The sample holds every n-gram here: those on a row make up its hits.
        if hot.known == len(hot.ngrams):
            assert sum(ngram.count for ngram in hot.ngrams) == hot.hits


def test_norms_of_a_bundle_are_those_of_its_table(made_once: Made) -> None:
    table, bundle = inspected(made_once.table), inspected(made_once.bundle)
    assert table.norms == bundle.norms
    assert table.duplicates == bundle.duplicates
    assert table.columns == bundle.columns
    assert table.read_bytes == bundle.read_bytes > 0
    for bins in table.norms:
        assert sum(bins.rows) == sum(
            c.rows for c in table.columns if (c.layer, c.order) == (bins.layer, bins.order)
        )


def test_what_is_not_read_is_not_told(made: Made) -> None:
    """Statistics know no norms, and rows may be left unread."""
    stats = inspected(made.stats)
    assert {column.mean for column in stats.columns} == {None}
    assert stats.norms == ()
    bare = inspected(made.table, rows=False)
    assert bare.columns == bare.norms == bare.hottest == ()
    assert len(bare.layout) == 16


def test_a_vocabulary_has_facts_and_digests(made_once: Made, small_vocab: Any) -> None:
    result = inspected(made_once.vocab)
    assert result.kind == "vocabulary"
    assert said(result)["compressed ids"].startswith(f"{small_vocab.size:,} (")
    assert [digest.value for digest in result.digests] == [
        small_vocab.digest,
        small_vocab.tokenizer_digest,
    ]


def test_another_vocabulary_beside_is_said_not_to_match(made: Made, deepseek_vocab: Any) -> None:
    from engram_cli.vocab.parquet import write_vocab

    write_vocab(deepseek_vocab, made.vocab, force=True)
    result = inspected(made.table)
    assert {digest.name: digest.matches for digest in result.digests}["vocabulary"] is False
    assert result.hottest[0].ngrams[0].text.startswith("#")


def test_the_fill_state_of_a_half_built_table(made: Made) -> None:
    partial = made.table.with_name("t.zarr.partial")
    made.table.rename(partial)
    chunk = partial / "1" / "c.0.0"
    lines = [
        {"format": "engram-table-build", "version": 1, "request": {}},
        {"file": "1/c.0.0", "size": chunk.stat().st_size, "checksum": "00"},
        {"file": "2/c.0.0", "size": 5, "checksum": "00"},
        {"file": "../../corpus.txt", "size": 1, "checksum": "00"},
    ]
    text = "\n".join(map(json.dumps, lines))
    (partial / "build.jsonl").write_text(f"{text}\n" + '{"file": "torn')
    for path in (partial, partial.with_name("t.zarr")):
        result = inspected(path)
        assert not result.complete
        assert said(result)["filled"] == (
            f"half-built: 1 chunks, {chunk.stat().st_size:,} bytes are whole"
        )


def test_the_page_is_the_same_each_time_and_holds_everything(
    made_once: Made, tmp_path: Path
) -> None:
    for name in ("a.html", "b.html"):
        inspected(made_once.table, report=tmp_path / name)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "b.html").read_text(encoding="utf-8")
    for heading in ("Norms of rows", "Rows the corpus uses", "Hottest rows", "Duplicate rows"):
        assert heading in page
    assert f"What {made_once.table.name} holds" in page
    assert page.index("It goes with everything") < page.index('<section id="norms"')
    with pytest.raises(OutputError, match="already exists"):
        inspected(made_once.table, report=tmp_path / "a.html")
    inspected(made_once.vocab, report=tmp_path / "c.html")
    assert "Rows alike" not in (tmp_path / "c.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("found", "title", "share"),
    [
        (duplicates(), "among all rows", "7.00 %"),
        (
            duplicates(twin_share_error=0.0113, contents_read=0.005),
            "among 1 in 200 row contents",
            "7.00 % ±1.13",
        ),
        (duplicates(bound=True), "among the rows that were read", "≤ 7.00 %"),
        (duplicates(bound=True, twin_share=1.0), "among the rows that were read", "-"),
    ],
)
def test_figures_of_duplicates_say_what_they_are_of(
    made_once: Made, found: Duplicates, title: str, share: str
) -> None:
    layers = (LayerRows(layer=1, duplicates=found),)
    result = replace(inspected(made_once.table, rows=False), duplicates=layers)
    view = next(view for view in inspection_views(result) if view.name == "duplicates")
    rows, groups = [part for part in view.parts if isinstance(part, Table)]
    assert rows.title == f"Duplicate rows {title}"
    assert groups.title == f"Largest groups of duplicate rows {title}"
    assert rows.columns[-1].text(rows.rows[0][-1]).replace("\u202f", " ") == share
    two = replace(result, duplicates=(*layers, LayerRows(layer=2, duplicates=duplicates())))
    views = {view.name: view for view in inspection_views(two)}
    assert ("(layer 1)" in views["duplicates"].lead) == (title != "among all rows")


def test_few_rows_are_shown_by_the_most_that_there_may_be() -> None:
    assert page._rows(0, 128.0, 1521) == Estimate(1521, bound=True)
    assert page._rows(1000, 201.0, 1500) == Estimate(1500, bound=True)
    assert page._rows(1000, 200.0, 1500) == Estimate(1000, 200.0)
    assert page._rows(3, 0.0, 3) == 3
    assert page._rows(None, 0.0, None) is None


def test_bad_requests_are_refused(made_once: Made) -> None:
    with pytest.raises(InputError, match="hottest"):
        InspectRequest(path=made_once.table, hottest=11)
    with pytest.raises(InputError, match="does not exist"):
        inspected(made_once.folder / "nowhere")
