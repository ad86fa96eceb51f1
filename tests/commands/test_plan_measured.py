"""What a plan says of hot rows and batches, against counting at the planned size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.plan.command import PlanRequest, PlanResult, plan
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.progress import Silent
from engram_cli.stats.stats_io import read_stats
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab

BATCH, ROWS, SMALLER, LARGER = 4096, 20_000, 3000, 80_000


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    """60 documents of phrases that all of them use and of their own, in three sizes of heads."""
    folder = tmp_path_factory.mktemp("measured")
    write_vocab(small_vocab, folder / "vocab.parquet")
    known = np.flatnonzero(small_vocab.lookup >= 0)
    generator = np.random.default_rng(3)
    weights = 1.0 / np.arange(1, len(known) + 1)
    common = generator.choice(known, (100, 10), p=weights / weights.sum())
    (folder / "corpus").mkdir()
    for index in range(60):
        phrases = generator.choice(known, (600, 10), p=weights / weights.sum())
        shared = generator.random(600) < 0.7
        phrases[shared] = common[generator.integers(0, len(common), int(shared.sum()))]
        ids = phrases.ravel()
        np.save(folder / "corpus" / f"{index:02}.npy", ids.astype(np.int32))
    for rows in (ROWS, SMALLER, LARGER):
        hash_stats(
            HashStatsRequest(
                sources=(folder / "corpus",),
                geometry=Geometry(rows_per_head=(rows,), heads=2, layers=(1,)),
                vocab=folder / "vocab.parquet",
                out=folder / f"of-{rows}",
                holdout=0.2,
                growth=False,
            )
        )
    return folder


def planned(
    here: Path, counted: int, rows: int, heard: Notes | None = None, **options: Any
) -> PlanResult:
    request = PlanRequest(
        stats=here / f"of-{counted}", geometry=Geometry(rows_per_head=(rows,)), **options
    )
    return plan(request, heard or Notes())


def test_smaller_heads_need_at_most_the_hot_rows_that_were_counted(here: Path) -> None:
    measured = planned(here, SMALLER, SMALLER, hit_rate=0.7)
    said = planned(here, ROWS, SMALLER, hit_rate=0.7)
    for one, other in zip(measured.hot, said.hot, strict=True):
        assert other.at_most
        assert not one.at_most
        assert one.rows is not None
        assert other.rows is not None
        assert one.rows <= other.rows
    assert any(one.rows != other.rows for one, other in zip(measured.hot, said.hot, strict=True))


def test_hot_rows_of_larger_heads_are_not_guessed(here: Path) -> None:
    heard = Notes()
    said = planned(here, ROWS, LARGER, heard, hit_rate=0.8)
    assert said.hot == ()
    assert said.hot_bytes == 0
    assert any(f"--rows-per-head {LARGER}" in note for note in heard.notes)
    measured = planned(here, LARGER, LARGER, hit_rate=0.8)
    fewer = planned(here, ROWS, ROWS, hit_rate=0.8)
    for one, other in zip(measured.hot, fewer.hot, strict=True):
        assert one.rows is not None
        assert other.rows is not None
        assert one.rows > other.rows  # so the counted number would miss the hit rate


@pytest.mark.parametrize("rows", [SMALLER, LARGER])
def test_the_rows_of_a_batch_are_those_of_the_planned_size(here: Path, rows: int) -> None:
    said, measured = (planned(here, c, rows, batch=BATCH).batch_share for c in (ROWS, rows))
    assert said is not None
    assert measured is not None
    assert not said.at_most
    assert said.share == pytest.approx(measured.share, rel=0.02)
    reused = planned(here, ROWS, ROWS, batch=BATCH).batch_share
    assert reused is not None
    assert abs(reused.share - measured.share) > abs(said.share - measured.share)


@pytest.mark.parametrize("batch", [100, 5000, 16_384, 2**17])
def test_batches_of_any_length_are_read_off_the_caches(here: Path, batch: int) -> None:
    """Up to an eighth of the corpus; longer ones repeat more than it tells."""
    ids = np.concatenate([np.load(file) for file in sorted((here / "corpus").iterdir())])
    hasher = StreamHasher(read_stats(here / f"of-{ROWS}").layout)
    columns = hasher.columns(hasher.push(ids, starts=None), 1)[::2]
    batches = [
        column[begin : begin + batch]
        for column in columns
        for begin in range(0, len(ids) - batch + 1, batch)
    ]
    true = np.mean([len(np.unique(each)) for each in batches]) / batch
    said = planned(here, ROWS, ROWS, batch=batch)
    assert said.batch_share is not None
    assert said.batch_share.at_most == (batch == 2**17)
    assert all(each.at_most for each in said.placements) == (batch == 2**17)
    assert true - said.batch_share.share <= 2 * said.batch_share.error
    if batch < 2**17:
        assert said.batch_share.share - true <= 2 * said.batch_share.error
        assert said.batch_share.error < 0.06


def test_the_cold_rows_of_a_batch_are_counted_as_cold(here: Path) -> None:
    """Against the rows of real batches: hot ones are those that the counts make hot."""
    hit_rate = 0.6
    said = planned(here, ROWS, ROWS, hit_rate=hit_rate, batch=BATCH)
    statistics = read_stats(here / f"of-{ROWS}")
    layout, hits = statistics.layout, statistics.hits(1)
    ids = np.concatenate([np.load(file) for file in sorted((here / "corpus").iterdir())])
    hasher = StreamHasher(layout)
    columns = hasher.columns(hasher.push(ids, starts=None), 1).astype(np.int64)
    columns += np.array(layout.layers[0].offsets)[:, None]
    hot = np.zeros(len(hits), dtype=bool)
    for at, each in enumerate(said.hot):
        assert each.rows is not None
        own = slice(layout.layers[0].offsets[2 * at], layout.layers[0].offsets[2 * at + 1])
        both = slice(own.start, own.stop + layout.layers[0].moduli[2 * at + 1])
        ranked = np.argsort(-hits[both].astype(np.int64), kind="stable")[: each.rows]
        hot[both.start + ranked] = True
    cold = distinct = 0
    batches = len(ids) // BATCH
    for begin in range(0, batches * BATCH, BATCH):
        met = np.unique(columns[:, begin : begin + BATCH])
        distinct += len(met)
        cold += int(np.count_nonzero(~hot[met]))
    lookups = batches * BATCH * layout.columns
    assert said.batch_share is not None
    true_cold, true_distinct = cold / lookups, distinct / lookups
    assert said.batch_share.share == pytest.approx(true_distinct, rel=0.05)
    by_name = {each.name: each for each in said.placements}
    near, far, mixed = (
        by_name[name].batch_seconds
        for name in ("all rows in HBM", "all rows on disk", "hot rows in HBM, all on disk")
    )
    share = said.batch_share.share
    true = (near * (true_distinct - true_cold) + far * true_cold) / share
    old = hit_rate * near + (1 - hit_rate) * far
    assert old < 0.9 * true < true <= 1.03 * mixed
    assert by_name["hot rows in HBM, all on disk"].at_most
