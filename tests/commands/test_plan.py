"""plan: its predictions against real builds and counts, its budgets, its file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.made import Made

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.plan.command import PlanRequest, PlanResult, plan
from engram_cli.commands.plan.file import read_plan
from engram_cli.commands.requests.plan import Budget
from engram_cli.errors import ArtifactError, InputError, MismatchError, OutputError
from engram_cli.progress import Silent
from engram_cli.sizes import read_size
from engram_cli.stats.statistics.growth_curve import Extrapolation, OrderGrowth, project
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.planning.estimates import hot_rows
from engram_cli.table.planning.placement import HARDWARE, find_hardware, touched
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab


class Notes(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def planned(made: Made, **options: Any) -> PlanResult:
    return plan(PlanRequest(stats=made.stats, vocab=made.vocab, **options))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8", "fp8_e8m0", "int4_b32"])
def test_bytes_are_those_of_the_built_store(made: Made, dtype: str, tmp_path: Path) -> None:
    """Exactly, with the hits of the counted geometry and without those of another."""
    for options in ({}, {"budget": Budget(memory=150_000)}):
        out = tmp_path / "plan.json"
        result = planned(made, dtype=dtype, dim=20, out=out, force=True, **options)
        if options:
            assert result.rows_bytes <= 150_000 < result.rows_bytes * 1.1
        said = read_plan(out)
        request = BuildTableRequest(
            geometry=said.geometry,
            vocab=made.vocab,
            stats=made.stats,
            out=tmp_path / "t.zarr",
            force=True,
            dim=said.dim,
            dtype=said.dtype,
            fingerprint=said.fingerprint,
        )
        build_table(request)
        chunks = [file for file in (tmp_path / "t.zarr").rglob("c.*") if file.is_file()]
        assert sum(f.stat().st_size for f in chunks) == result.total_bytes == said.total_bytes
        assert result.layers == build_table(replace(request, dry_run=True)).plan.layers


def test_occupancy_and_clean_heads_are_those_counted(made: Made, tmp_path: Path) -> None:
    """Of a geometry that the statistics were not made with, counted afterwards."""
    geometry = Geometry(rows_per_head=(2003,), heads=8, layers=(5,))
    result = planned(made, geometry=geometry)
    hash_stats(
        HashStatsRequest(
            sources=(str(made.folder / "corpus.txt"),),
            geometry=geometry,
            vocab=made.vocab,
            out=tmp_path / "stats",
            tokenizer=made.folder / "tokenizer.json",
        )
    )
    counted = read_stats(tmp_path / "stats")
    assert counted.layout.fingerprint == result.fingerprint
    for each in result.expected:
        columns = [c for c in counted.document["columns"] if c["order"] == each.order]
        assert len(columns) == 8
        shares = [column["occupied"] / column["rows"] for column in columns]
        assert all(abs(share - each.occupied) < 4 * each.occupied_error for share in shares)
        # One corpus, hashed by 8 heads: their mean is nearer than any of them.
        assert abs(np.mean(shares) - each.occupied) < 1.5 * each.occupied_error
        clean = [c for c in counted.document["clean_heads"] if c["order"] == each.order]
        mean = np.mean([np.dot(c["ngrams"], np.arange(9)) for c in clean])
        assert mean == pytest.approx(each.clean, rel=0.1, abs=0.15)
        ideal = clean[0]["ideal"]
        assert each.none_clean == pytest.approx(ideal[0], rel=0.05)


def test_the_hot_rows_catch_what_was_asked_for(made: Made) -> None:
    result = planned(made, hit_rate=0.5)
    statistics = read_stats(made.stats)
    entry = statistics.layout.layers[0]
    for index, hot in enumerate(result.hot):
        begin = entry.offsets[index * 4]
        end = entry.offsets[index * 4 + 3] + entry.moduli[index * 4 + 3]
        own = np.sort(statistics.hits(1)[begin:end])[::-1].astype(np.int64)
        least = int(np.searchsorted(np.cumsum(own), 0.5 * own.sum())) + 1
        assert hot_rows(own.astype(np.uint32), 0.5) == least
        assert least * 2 <= hot.rows <= least * 2 + 8  # two layers; a row each head is rounded up
        assert not hot.held_out


def test_budgets_in_bytes_parameters_and_shares(made: Made) -> None:
    by_params = planned(made, budget=Budget(params=500_000))
    assert 0.95 * 500_000 < by_params.params <= 500_000
    share = planned(made, budget=Budget(sparse_params=4_000_000, share=(0.1, 0.15)))
    assert share.geometry == by_params.geometry
    with pytest.raises(InputError, match="--share without --sparse-params"):
        Budget(params=500_000, share=(0.1, 0.15))
    for wrong in (
        *({"memory": 1, "params": 1}, {"memory": 0}, {"share": (0.2, 0.3)}),
        {"sparse_params": 10**6, "share": (0.3, 0.2)},
    ):
        with pytest.raises(InputError):
            Budget(**wrong)
    with pytest.raises(InputError, match="too few"):
        planned(made, budget=Budget(memory=500))
    with pytest.raises(InputError, match="a budget and --rows-per-head"):
        planned(made, budget=Budget(params=10**6), geometry=Geometry(rows_per_head=(100,)))


def test_alternatives_keep_the_bytes(made: Made) -> None:
    result = planned(made, budget=Budget(memory=10**6))
    assert result.alternatives[0].planned
    assert {each.heads for each in result.alternatives} == {4, 8, 16}
    for each in result.alternatives:
        whole = each.token_bytes * each.rows_per_head
        assert whole == pytest.approx(result.rows_bytes, rel=0.05)
        if each.dtype == "int8" and each.heads == 4:
            assert min(each.clean) > max(result.alternatives[0].clean) * 0.9


def test_placements_fit_or_say_that_they_do_not(made: Made) -> None:
    small = replace(find_hardware("h200"), hbm_bytes=10_000, host_bytes=1)
    result = planned(made, hardware=small)
    by_name = {each.name: each for each in result.placements}
    assert not by_name["all rows in HBM"].fits
    assert not by_name["all rows on the host"].fits
    assert by_name["all rows on disk"].fits
    assert result.fits
    times = [each.token_seconds for each in planned(made).placements]
    assert times == sorted(times)
    bare = planned(made, hardware=find_hardware("cpu"))
    assert all("HBM" not in each.name for each in bare.placements)
    assert all(each.source for each in HARDWARE.values())


def test_blocks_moved_for_a_row() -> None:
    """Against each row of a long table."""
    for row_bytes in (16, 64, 72, 128, 264, 4096, 5000):
        for block in (32, 64, 4096):
            firsts = np.arange(4096) * row_bytes
            blocks = (firsts + row_bytes - 1) // block - firsts // block + 1
            assert touched(row_bytes, block) == pytest.approx(blocks.mean() * block, rel=1e-3)


def test_the_projection_is_the_curve_that_was_fitted() -> None:
    """Slope 0.8 that falls by a tenth for each factor of 10: its own points and between."""
    q = 0.9

    def curve(tokens: float) -> float:
        steps = np.log10(tokens / 1e6)
        return float(5e5 * np.exp(0.8 * np.log(10) * (1 - q**steps) / (1 - q)))

    entry = OrderGrowth(
        order=2,
        tokens=(10**5, 10**6),
        distinct=(curve(1e5), curve(1e6)),
        error=(10.0, 100.0),
        extrapolated=tuple(
            Extrapolation(
                factor=f,
                tokens=10**6 * f,
                distinct=curve(1e6 * f),
                error=0.02 * curve(1e6 * f) * f**0.1,
            )
            for f in (10, 100)
        ),
    )
    for tokens in (2e6, 1e7, 5e7, 1e8, 1e9):
        found = project(entry, tokens)
        assert found is not None
        assert found.distinct == pytest.approx(curve(tokens), rel=1e-9)
    assert project(entry, 10**6).distinct == pytest.approx(5e5)  # type: ignore[union-attr]
    between = project(entry, 3e5)
    assert between is not None
    assert curve(1e5) < between.distinct < curve(1e6)
    assert project(replace(entry, extrapolated=()), 10**7) is None


def with_curves(made: Made, curves: dict[int, list[float]]) -> int:
    """Give the statistics growth curves by order, at an eighth, a quarter, half and all of the
    tokens, which are returned; beyond, ten times the tokens hold four times the n-grams."""
    path = made.stats / "stats.json"
    document = json.loads(path.read_bytes())
    del document["digest"]
    tokens = document["tokens"]
    document["growth"] = [
        {
            "order": order,
            "tokens": [tokens // 8, tokens // 4, tokens // 2, tokens],
            "distinct": curve,
            "error": [4.0, 3.0, 2.0, 1.0],
            "extrapolated": [
                {
                    "factor": f,
                    "tokens": f * tokens,
                    "distinct": curve[-1] * g,
                    "error": curve[-1] * g / 10,
                }
                for f, g in ((10, 4.0), (100, 15.0))
            ],
        }
        for order, curve in curves.items()
    ]
    path.write_text(json.dumps(document))
    return int(tokens)


def test_below_the_corpus_the_measured_curve_is_followed(made: Made) -> None:
    """Never more n-grams in fewer tokens, nor fewer long n-grams than short ones."""
    known = {each.order: each.distinct for each in planned(made).expected}
    tokens = with_curves(made, {2: [19, 40, 80, 120], 3: [18, 41, 79, 130]})
    before = [0.0, 0.0]
    for asked in [*range(1, tokens, 7), tokens - 1, tokens, tokens + 1, 2 * tokens]:
        two, three = planned(made, tokens=asked).expected
        assert two.distinct <= three.distinct <= asked
        assert two.distinct >= before[0]
        assert three.distinct >= before[1]
        before = [two.distinct, three.distinct]
        if asked <= tokens:
            assert two.distinct <= known[2]
            assert three.distinct <= known[3]
    half, _ = planned(made, tokens=tokens // 2).expected
    assert half.distinct == pytest.approx(80 / 120 * known[2])
    early, _ = planned(made, tokens=tokens // 16).expected  # before the first point: by bounds
    assert early.distinct_error > 0.1
    assert 1.0 < early.distinct < tokens // 16


def test_far_beyond_the_corpus_a_plan_says_how_little_it_knows(made: Made) -> None:
    tokens = with_curves(made, {2: [30, 55, 80, 120], 3: [25, 60, 90, 130]})
    for factor, told in ((1000, False), (1001, True)):
        heard = Notes()
        request = PlanRequest(stats=made.stats, tokens=factor * tokens)
        two, _ = plan(request, heard).expected
        said = [note for note in heard.notes if "orders of magnitude" in note]
        assert bool(said) == told
        if told:
            assert f"2-grams {two.distinct_error / two.distinct:.0%}" in said[0]


def test_another_vocabulary_than_that_of_the_statistics_is_refused(
    made: Made, small_vocab: CompressedVocab
) -> None:
    other = made.folder / "other.parquet"
    lookup = small_vocab.lookup.copy()
    lookup[[5, 6]] = lookup[[6, 5]]
    write_vocab(replace(small_vocab, lookup=lookup), other)
    with pytest.raises(MismatchError, match=r"with another vocabulary \(.*other\.parquet"):
        plan(PlanRequest(stats=made.stats, vocab=other))
    assert planned(made).fingerprint == plan(PlanRequest(stats=made.stats)).fingerprint


def test_without_statistics_there_are_bounds(made: Made) -> None:
    shutil.rmtree(made.stats)
    result = planned(made, tokens=10_000, geometry=Geometry(rows_per_head=(500,)))
    assert [each.distinct for each in result.expected] == [10_000, 10_000]
    assert all(each.bound for each in result.expected)
    assert result.hot == ()
    with pytest.raises(InputError, match="no number of tokens"):
        planned(made)


def test_what_cannot_be_planned_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no 4-grams"):
        planned(made, geometry=Geometry(orders=(2, 3, 4), scheme="engram-v1"))
    with pytest.raises(InputError, match="unknown hardware 'tpu'"):
        find_hardware("tpu")
    with pytest.raises(InputError, match="hit rate"):
        planned(made, hit_rate=1.0)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(OutputError, match="already exists"):
        planned(made, out=tmp_path / "plan.json")


@pytest.mark.parametrize(
    "edit",
    [
        {"format": "other"},
        {"version": 2},
        {"version": None},
        {"dim": -1},
        {"dtype": 3},
        {"geometry": {"heads": "8"}},
        {"geometry": {"path": "x"}},
        {"geometry": {"orders": [2, None]}},
        {"geometry": []},
    ],
)
def test_a_damaged_plan_is_refused(made: Made, tmp_path: Path, edit: dict[str, Any]) -> None:
    path = tmp_path / "plan.json"
    planned(made, out=path)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | edit))
    with pytest.raises(ArtifactError):
        read_plan(path)


def test_a_plan_of_another_vocabulary_is_not_built(made: Made, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="the plan is of layout"):
        build_table(
            BuildTableRequest(
                vocab=made.vocab,
                stats=made.stats,
                out=tmp_path / "t.zarr",
                fingerprint="sha256:" + "0" * 64,
            )
        )
    assert not (tmp_path / "t.zarr").exists()


def test_hot_rows_are_rows_that_were_hit(made: Made) -> None:
    """Rows that nothing hits are not hot; larger heads and other corpora are not judged."""
    path = made.stats / "stats.json"
    document = json.loads(path.read_bytes())
    del document["digest"]
    shares = [0.01, 0.1, 0.5, 1.0]
    document["locality"] = {"hot": [
        {"layer": layer, "order": order, "rows_share": shares, "counted": shares,
         "held_out": [0.2, 0.4, 0.7, 1.0]}
        for layer in (1, 2) for order in (2, 3)
    ]}  # fmt: skip
    path.write_text(json.dumps(document))
    whole = planned(made)
    assert all(hot.rows is None and (hot.reach or 0.0) < 0.9 for hot in whole.hot)
    assert whole.hot_bytes == 0
    assert all("hot" not in each.name for each in whole.placements)
    low = planned(made, hit_rate=0.1)
    for hot in low.hot:
        assert hot.rows is not None
        assert hot.share == pytest.approx(0.005, rel=0.5)
    for options, told in (
        ({"tokens": 3}, "do not say"),
        ({"budget": Budget(memory=10**9)}, "rows"),
    ):
        heard = Notes()
        few = plan(PlanRequest(stats=made.stats, **options), heard)
        assert few.hot == ()
        assert any("no hot rows" in note and told in note for note in heard.notes)


def test_without_a_curve_more_tokens_are_a_bound(made: Made) -> None:
    heard = Notes()
    result = plan(PlanRequest(stats=made.stats, tokens=10**12), heard)
    assert all(each.bound for each in result.expected)
    assert any("--no-growth" in note for note in heard.notes)


def test_what_is_no_plan_is_not_replaced_and_a_plan_is_told(made: Made, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(OutputError, match="is no plan, so --force does not replace it"):
        planned(made, out=notes, force=True)
    notes.write_text("")
    planned(made, out=notes, force=True)
    with pytest.raises(InputError, match="is a plan, not a table"):
        find_artifact(notes)
    with pytest.raises(ValueError, match="units: K, M, G, T"):
        read_size("8PB")
    with pytest.raises(InputError, match="is a tokenizer, not a vocabulary"):
        plan(PlanRequest(stats=made.stats, vocab=made.folder / "tokenizer.json"))
