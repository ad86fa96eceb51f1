"""report: a statistics folder becomes a page; what is not one is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from commands.made import Made

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.report import ReportRequest, write_report
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.report.place import is_page
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_report(ReportRequest(stats=tmp_path / "none", out=tmp_path / "report.html"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_page_is_refused_first(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    with pytest.raises(OutputError):
        write_report(ReportRequest(stats=tmp_path / "none", out=page))
    assert page.read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_force_replaces_pages_and_empty_files_only(force: bool, made: Made) -> None:
    vocabulary = made.vocab.read_bytes()
    with pytest.raises(OutputError):
        write_report(ReportRequest(stats=made.stats, out=made.vocab, force=force))
    assert made.vocab.read_bytes() == vocabulary
    page = made.folder / "report.html"
    page.touch()
    for _ in range(2):
        if force:
            write_report(ReportRequest(stats=made.stats, out=page, force=True))
            assert is_page(page)


def test_damaged_partials_are_not_drawn(made: Made) -> None:
    partials = made.stats / "partials.safetensors"
    raw = bytearray(partials.read_bytes())
    raw[-1] ^= 1
    partials.write_bytes(raw)
    page = made.folder / "report.html"
    with pytest.raises(ArtifactError, match=r"partials\.safetensors has another digest"):
        write_report(ReportRequest(stats=made.stats, out=page))
    assert not page.exists()


@pytest.mark.parametrize(
    ("figure", "value"),
    [("shared", 0.5), ("ideal_occupied", 1.0), ("occupied", 7), ("digest", "sha256:0")],
)
def test_figures_that_were_changed_are_not_drawn(made: Made, figure: str, value: object) -> None:
    path, page = made.stats / "stats.json", made.folder / "report.html"
    document = json.loads(path.read_bytes())
    (document if figure == "digest" else document["columns"][3])[figure] = value
    path.write_bytes(json.dumps(document).encode())
    with pytest.raises(ArtifactError, match=r"stats\.json was changed") as caught:
        write_report(ReportRequest(stats=made.stats, out=page))
    assert "engram hash-stats --force" in caught.value.hint
    assert not page.exists()
    verified = verify(VerifyRequest(path=made.stats))
    assert "stats.json was changed" in " ".join(verified.problems)
    assert verified.files > 2


def test_statistics_of_earlier_versions_have_no_digest(made: Made) -> None:
    path = made.stats / "stats.json"
    document = json.loads(path.read_bytes())
    del document["digest"]
    path.write_bytes(json.dumps(document).encode())
    write_report(ReportRequest(stats=made.stats, out=made.folder / "report.html"))


@pytest.mark.parametrize("damage", ["chunk", "no chunk", "sample"])
def test_damaged_counts_are_not_drawn(damage: str, made: Made) -> None:
    """Though the figures in stats.json are whole."""
    page = made.folder / "report.html"
    if damage == "sample":
        (made.stats / "sample.parquet").write_bytes(b"PAR1")
    else:
        chunk = made.stats / "counters.zarr" / "1" / "c" / "0"
        raw = bytearray(chunk.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        chunk.write_bytes(raw)
        if damage == "no chunk":
            chunk.unlink()
    with pytest.raises(ArtifactError, match=r"counters\.zarr|sample\.parquet") as caught:
        write_report(ReportRequest(stats=made.stats, out=page))
    assert "engram hash-stats --force" in caught.value.hint
    assert not page.exists()


def test_counting_draws_the_page_that_report_draws(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    corpus, here = tmp_path / "corpus.txt", Workspace(tmp_path)
    corpus.write_text("the cat sat on the mat. the cat sat.\n" * 50)
    write_vocab(small_vocab, here.vocab)
    pages = tmp_path / "a.html", tmp_path / "b.html"
    request = HashStatsRequest(
        sources=(corpus,),
        geometry=Geometry(rows_per_head=(1000,), layers=(1,)),
        workspace=here,
        tokenizer=tokenizer_file,
        report=pages[0],
    )
    hash_stats(request)
    result = write_report(ReportRequest(stats=here.stats, out=pages[1]))
    counted, drawn = (page.read_text(encoding="utf-8") for page in pages)
    facts = r'<dl class="facts">.*?</dl></header>'
    assert re.sub(facts, "", counted) == re.sub(facts, "", drawn) != counted
    assert result.bytes == len(pages[1].read_bytes())
    today = datetime.now(UTC)
    for page, said in ((counted, str(corpus)), (drawn, "1 file; statistics keep no names")):
        [head] = re.findall(facts, page)
        assert f"<dt>Corpus</dt><dd>{said}</dd>" in head
        assert f"<dt>Tokenizer</dt><dd>{tokenizer_file}</dd>" in head
        assert f"<dt>Date</dt><dd>{today:%Y}-" in head
    assert f"engram hash-stats {corpus} --rows-per-head 1000 --layers 1" in counted
    assert (
        "engram hash-stats CORPUS --scheme engram-v1 --orders 2,3 --heads 8 --rows-per-head 1000 --"
        in drawn
    )
    for name in ("verdict", "orders", "occupancy", "clean-heads", "row-hits", "ngrams", "layout"):
        assert f'<section id="{name}"' in pages[0].read_text()
    with pytest.raises(OutputError, match=r"a\.html"):
        hash_stats(dataclasses.replace(request, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()
