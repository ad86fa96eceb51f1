"""build-table: where its geometry comes from, what it reckons first, and what it then builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.errors import ArtifactError, InputError, LayoutError, MismatchError, OutputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.stats import stats_io
from engram_cli.stats.sampling.distinct import EVERYTHING, NgramSample
from engram_cli.stats.totals import Counts
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab

SMALL: dict[str, Any] = {"orders": (2, 3), "heads": 2, "layers": (1, 4)}
SIZES: dict[str, Any] = SMALL | {"rows_per_head": (60, 70)}


class Notes:
    """A listener that keeps the notes and counts the bytes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bytes = 0

    def start(self, what: str, total: int | None, unit: str) -> None:
        assert unit == "bytes"

    def advance(self, amount: int) -> None:
        self.bytes += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def request_(tmp_path: Path, small_vocab: CompressedVocab) -> BuildTableRequest:
    """A small table in a folder that has a vocabulary and no statistics."""
    vocab = tmp_path / "engram-vocab.parquet"
    write_vocab(small_vocab, vocab)
    return BuildTableRequest(
        geometry=Geometry(**SIZES),
        vocab=vocab,
        stats=tmp_path / "engram-stats",
        out=tmp_path / "t.zarr",
        dim=6,
    )


def count_corpus(path: Path, layout: HashLayout) -> Counts:
    """Statistics of a random corpus of 500 tokens."""
    ids = np.random.default_rng(0).integers(0, 40, 500)
    hits = {
        layer.layer: np.bincount(
            hash_tokens(layout, ids, layer=layer.layer).reshape(-1), minlength=layer.rows
        ).astype(np.uint32)
        for layer in layout.layers
    }
    nothing = np.empty(0, dtype=np.uint64)
    samples = tuple(
        NgramSample(
            order=order,
            size=1,
            threshold=EVERYTHING,
            hashes=nothing,
            counts=nothing,
            tokens=np.empty((0, order), dtype=np.int32),
        )
        for order in layout.orders
    )
    counts = Counts(
        layout=layout, tokens=500, documents=1, joined=False, hits=hits, samples=samples
    )
    stats_io.write_stats(counts, lambda: {"orders": (), "columns": ()}, path)
    return counts


@pytest.fixture
def counts(request_: BuildTableRequest, small_vocab: CompressedVocab) -> Counts:
    assert request_.stats is not None
    return count_corpus(request_.stats, hash_layout("engram-v1", small_vocab, **SIZES))


def test_what_a_table_of_order_1_is_is_noted(request_: BuildTableRequest) -> None:
    for orders, noted in (((1, 2), True), ((2,), False)):
        progress = Notes()
        geometry = replace(request_.geometry, orders=orders, rows_per_head=(61,))
        build_table(replace(request_, geometry=geometry, dry_run=True), progress)
        assert any(note.startswith("order 1: ") for note in progress.notes) is noted


def test_the_arithmetic_is_what_the_files_take(
    request_: BuildTableRequest, small_vocab: CompressedVocab
) -> None:
    plan = build_table(replace(request_, dry_run=True)).plan
    assert not request_.out.exists()
    layout = hash_layout("engram-v1", small_vocab, **SIZES)
    assert plan.fingerprint == layout.fingerprint
    assert [layer.rows for layer in plan.layers] == [entry.rows for entry in layout.layers]
    assert (plan.token_rows, plan.token_bytes) == (2 * 4, 2 * 4 * 6 * 2)
    assert plan.fits
    assert (plan.tokens, plan.done_bytes) == (None, 0)
    progress = Notes()
    result = build_table(request_, progress)
    assert result.plan == replace(plan, free_bytes=result.plan.free_bytes)
    on_disk = sum(path.stat().st_size for path in request_.out.rglob("c.*"))
    assert on_disk == plan.total_bytes
    assert on_disk == sum(layer.total_bytes for layer in plan.layers) + plan.lookup_bytes
    assert progress.bytes == sum(layer.total_bytes for layer in plan.layers)


def test_a_table_is_built_from_flags_alone(
    request_: BuildTableRequest, small_vocab: CompressedVocab
) -> None:
    result = build_table(request_)
    table = open_table(request_.out)
    assert result.written
    assert result.digest == table.digest
    assert result.resumed_chunks == 0
    assert (table.dim, table.dtype, table.init) == (6, "bfloat16", "normal")
    assert table.hits(1) is None
    np.testing.assert_array_equal(table.layout.lookup, small_vocab.lookup)
    assert verify_table(request_.out).ok


def test_a_dry_run_writes_nothing(request_: BuildTableRequest) -> None:
    before = sorted(request_.out.parent.iterdir())
    result = build_table(replace(request_, dry_run=True))
    assert not result.written
    assert result.plan.total_bytes > 0
    assert sorted(request_.out.parent.iterdir()) == before


def test_options_reach_the_table(request_: BuildTableRequest) -> None:
    build_table(
        replace(request_, dtype="float16", std=0.5, init_seed=2**60, chunk_rows=50, threads=2)
    )
    table = open_table(request_.out)
    assert table.dtype == "float16"
    assert table.attributes["init"]["parameters"]["seed"] == str(2**60)
    assert 0.45 < table.rows(1, np.arange(200)).std() < 0.55
    build_table(replace(request_, init="zeros", force=True))
    assert not open_table(request_.out).rows(1, np.arange(200)).any()


def test_statistics_give_geometry_and_hits(request_: BuildTableRequest, counts: Counts) -> None:
    progress = Notes()
    build_table(replace(request_, geometry=Geometry()), progress)
    table = open_table(request_.out)
    assert table.layout.fingerprint == counts.layout.fingerprint
    assert table.attributes["statistics"] == {"tokens": 500}
    for layer, hits in counts.hits.items():
        np.testing.assert_array_equal(table.hits(layer), hits)
    assert progress.notes == [
        f"geometry and row hits: those of {request_.stats}, layers 1, 4, at least 61 rows a head",
        "pad token: <pad> (id 2)",
    ]


def test_statistics_are_enough_without_a_vocabulary(
    request_: BuildTableRequest, counts: Counts
) -> None:
    request_.vocab.unlink()
    build_table(replace(request_, geometry=Geometry(heads=2)))
    assert open_table(request_.out).hits(4) is not None


@pytest.mark.parametrize(
    "geometry", [Geometry(heads=2), Geometry(scheme="engram-v1", layers=(1, 4)), Geometry(**SIZES)]
)
def test_choices_equal_to_the_statistics_keep_the_hits(
    request_: BuildTableRequest, counts: Counts, geometry: Geometry
) -> None:
    build_table(replace(request_, geometry=geometry))
    assert open_table(request_.out).hits(1) is not None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"heads": 3}, SIZES | {"heads": 3}),
        ({"layers": (2,)}, SIZES | {"layers": (2,)}),
        ({"rows_per_head": (80,)}, SIZES | {"rows_per_head": (80, 80)}),
        ({"seed": 5}, SIZES | {"seed": 5}),
        (
            {"orders": (2,), "rows_per_head": (60,)},
            SIZES | {"orders": (2,), "rows_per_head": (60,)},
        ),
        ({"scheme": "deepseek-v4.1", "rows_per_head": (50,)}, {"rows_per_head": 50}),
    ],
)
def test_flags_win_over_statistics_and_the_hits_are_left_out(
    request_: BuildTableRequest,
    small_vocab: CompressedVocab,
    counts: Counts,
    given: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    progress = Notes()
    build_table(replace(request_, geometry=Geometry(**given)), progress)
    scheme = given.get("scheme", "engram-v1")
    table = open_table(request_.out)
    assert table.layout.fingerprint == hash_layout(scheme, small_vocab, **expected).fingerprint
    assert table.hits(table.layout.layer_ids[0]) is None
    note, pad = progress.notes
    assert pad.startswith("pad token: ")
    assert "left out" in note


def test_other_orders_take_over_a_size_that_is_the_same_for_all(
    request_: BuildTableRequest, small_vocab: CompressedVocab
) -> None:
    layout = hash_layout("engram-v1", small_vocab, **SMALL, rows_per_head=60)
    merged = Geometry(orders=(2, 3, 4)).over(layout)
    assert merged.rows_per_head == (60,)
    with pytest.raises(LayoutError, match="2 sizes of rows per head for 3 orders"):
        Geometry(orders=(2, 3, 4)).over(hash_layout("engram-v1", small_vocab, **SIZES)).resolve(
            request_.vocab
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda vocab: hash_layout("engram-v1", vocab, **SIZES, seed=3, pad_id=1),
        lambda vocab: hash_layout("deepseek-v4.1", vocab, rows_per_head=40, layers=(1, 2)),
        lambda vocab: hash_layout("qwen-ple", vocab_size=77, eos_id=3, rows_per_head=40),
        lambda vocab: hash_layout("tutorial", vocab_size=77, rows_per_head=40, heads=3),
    ],
)
def test_a_geometry_taken_from_a_layout_makes_it_again(
    request_: BuildTableRequest,
    small_vocab: CompressedVocab,
    make: Callable[[CompressedVocab], HashLayout],
) -> None:
    layout = make(small_vocab)
    again = Geometry.from_layout(layout).resolve(request_.vocab)
    assert again.fingerprint == layout.fingerprint
    assert Geometry().over(layout) == Geometry.from_layout(layout)


def test_statistics_of_another_vocabulary_are_refused(
    request_: BuildTableRequest, counts: Counts, deepseek_vocab: CompressedVocab
) -> None:
    write_vocab(deepseek_vocab, request_.vocab, force=True)
    with pytest.raises(MismatchError, match="counted with vocabulary") as caught:
        build_table(request_)
    assert "hash-stats" in caught.value.hint
    # Left out on purpose, they are no hindrance.
    assert build_table(replace(request_, stats=None)).written


def test_statistics_of_raw_ids_need_no_vocabulary(request_: BuildTableRequest) -> None:
    assert request_.stats is not None
    layout = hash_layout("qwen-ple", vocab_size=50, eos_id=1, rows_per_head=40, heads=2)
    count_corpus(request_.stats, layout)
    build_table(replace(request_, geometry=Geometry()))
    assert open_table(request_.out).layout.fingerprint == layout.fingerprint


def test_counters_of_another_height_are_refused(
    request_: BuildTableRequest, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_io.Statistics, "hits", lambda self, layer: np.zeros(3, np.uint32))
    with pytest.raises(ArtifactError, match=r"layer 1 are uint32 of shape \(3,\)"):
        build_table(replace(request_, geometry=Geometry()))
    assert not request_.out.exists()


def test_without_vocabulary_and_statistics_the_next_step_is_named(
    request_: BuildTableRequest,
) -> None:
    request_.vocab.unlink()
    with pytest.raises(InputError, match="no compressed vocabulary") as caught:
        build_table(request_)
    assert "compress-vocab" in caught.value.hint


def test_an_existing_table_is_refused_and_hides_no_wrong_option(
    request_: BuildTableRequest,
) -> None:
    """A dry run says so too, and computes."""
    first = build_table(request_)
    with pytest.raises(OutputError, match="already exists"):
        build_table(request_)
    planned = build_table(replace(request_, dry_run=True))
    assert "already exists; use --force" in str(planned.in_the_way)
    assert planned.plan.total_bytes == first.plan.total_bytes
    for dry_run in (False, True):
        request = replace(request_, dry_run=dry_run)
        with pytest.raises(InputError, match="unknown dtype 'int7'"):
            build_table(replace(request, dtype="int7"))
        assert build_table(replace(request, force=True)).written is not dry_run
    request_.vocab.write_bytes(b"no parquet")
    for force in (False, True):
        with pytest.raises(ArtifactError):
            build_table(replace(request_, force=force))
    assert open_table(request_.out).digest == first.digest


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dim": 0}, "dim 0"),
        ({"dim": 2**20}, "dim 1048576"),
        ({"dtype": "int7"}, "unknown dtype 'int7'"),
        ({"init": "ones"}, "unknown init 'ones'"),
        ({"init": "zeros", "std": 0.1}, "init 'zeros' has no std"),
        ({"std": -1.0}, "std -1.0"),
        ({"init_seed": -1}, "seed -1"),
        ({"chunk_rows": 0}, "--chunk-rows 0"),
        ({"threads": 0}, "--threads 0"),
    ],
)
def test_choices_that_cannot_be_are_refused(
    request_: BuildTableRequest, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        build_table(replace(request_, **options))
    assert not request_.out.exists()


def test_an_interrupted_build_is_announced_and_gone_on_with(request_: BuildTableRequest) -> None:
    class CtrlC(Notes):
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    cut = replace(request_, chunk_rows=20)
    whole = build_table(cut)
    with pytest.raises(KeyboardInterrupt):
        build_table(replace(cut, force=True, std=0.5), CtrlC())
    assert open_table(request_.out).digest == whole.digest
    again = replace(cut, force=True, std=0.5)
    plan = build_table(replace(again, dry_run=True)).plan
    progress = Notes()
    result = build_table(again, progress)
    assert result.resumed_chunks * 20 * 12 == plan.done_bytes
    assert len(progress.notes) == (2 if plan.done_bytes else 1)
    assert open_table(request_.out).attributes["init"]["parameters"]["std"] == 0.5
