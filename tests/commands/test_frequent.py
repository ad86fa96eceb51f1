"""What few n-grams decide, from a small sample: as exact counting finds it, on real text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_cli import write_vocab
from engram_cli.commands.demo.command import library_folder, standard_library
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, HashStatsResult, hash_stats
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.lookup.command import LookupRequest, lookup
from engram_cli.commands.merge_stats import MergeStatsRequest, merge_stats
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.commands.workspace import Workspace
from engram_cli.stats.sampling.occurrences import Occurrences
from engram_cli.stats.statistics.sources import Sources
from engram_cli.stats.stats_io import read_stats
from engram_cli.typed_json import as_json
from engram_cli.vocab.compress import CompressedVocab

GEOMETRY = Geometry(heads=4, rows_per_head=(20_011,), layers=(1,), pad_id=2)


@pytest.fixture(scope="module")
def here(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Path:
    """A workspace with sources of Python, those of tests and the others apart."""
    folder = tmp_path_factory.mktemp("frequent")
    shutil.copy(tokenizer_file, folder / "tokenizer.json")
    write_vocab(small_vocab, folder / "engram-vocab.parquet")
    for index, path in enumerate(islice(standard_library(library_folder()), 12)):
        part = folder / "corpus" / ("few" if index % 4 == 0 else "many")
        part.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8", errors="replace")
        (part / f"{index}.txt").write_text(text[:20_000], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results(here: Path) -> Iterator[dict[str, HashStatsResult]]:
    """From samples of 1,000 n-grams and 20,000 positions, of 2,000 of each source, and exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Occurrences.__init__, "__defaults__", (20_000,))
        patch.setattr(Sources.__init__, "__defaults__", (2000,))
        yield {name: run(here, name, exact=name == "exact") for name in ("sampled", "exact")}


def run(here: Path, name: str, source: str = "corpus", **options: Any) -> HashStatsResult:
    return hash_stats(
        HashStatsRequest(
            sources=(here / source,),
            geometry=GEOMETRY,
            workspace=Workspace(here),
            out=here / name,
            sample_size=1000,
            compare_uncompressed=True,
            group_by="folder",
            **options,
        )
    )


def test_the_ten_most_frequent(results: dict[str, HashStatsResult]) -> None:
    sampled, exact = (
        as_json(results[name].sections["top_ngrams"]) for name in ("sampled", "exact")
    )
    for one, two in zip(sampled, exact, strict=True):
        assert (one["exact"], two["exact"]) == (False, True)
        assert [e["text"] for e in one["ngrams"][:10]] == [e["text"] for e in two["ngrams"][:10]]
        for a, b in zip(one["ngrams"][:10], two["ngrams"][:10], strict=True):
            assert b["exact"]
            assert a["count"] == b["count"] if a["exact"] else a["count"] >= b["count"]


def test_sharing_by_use_with_and_without_compression(results: dict[str, HashStatsResult]) -> None:
    sampled, exact = results["sampled"], results["exact"]
    for one, two in zip(sampled.columns, exact.columns, strict=True):
        assert 0.0 < one.shared_occurrences_error < 0.02
        assert two.shared_occurrences_error == 0.0
        miss = abs(one.shared_occurrences - two.shared_occurrences)
        assert miss < 3.5 * one.shared_occurrences_error
    raw, true = (as_json(each.sections["uncompressed"]) for each in (sampled, exact))
    assert all(order["exact"] and order["distinct_error"] == 0.0 for order in true["orders"])
    assert not any(order["exact"] for order in raw["orders"])
    for one, two in zip(raw["columns"], true["columns"], strict=True):
        assert two["shared_error"] == two["shared_occurrences_error"] == 0.0
        miss = abs(one["shared_occurrences"] - two["shared_occurrences"])
        assert miss < 3.5 * one["shared_occurrences_error"]


def test_what_sources_share(results: dict[str, HashStatsResult]) -> None:
    sampled, exact = (as_json(results[name].sections["sources"]) for name in ("sampled", "exact"))
    assert sampled["names"] == exact["names"] == ["few", "many"]
    for one, two in zip(sampled["overlap"], exact["overlap"], strict=True):
        assert two["share_error"] == two["ngrams_error"] == [[0.0, 0.0], [0.0, 0.0]]
        for key in ("share", "ngrams"):
            miss = np.abs(np.array(one[key]) - two[key])
            assert np.all(miss <= 3.5 * np.array(one[f"{key}_error"]))
    longest = sampled["overlap"][-1]
    assert all(0.0 < longest["share_error"][i][1 - i] < 0.03 for i in (0, 1))
    assert all(error > 0.0 for error in longest["distinct_error"])


@pytest.mark.parametrize("exact", [False, True])
def test_parts_merge_into_the_bytes_of_the_whole(here: Path, exact: bool) -> None:
    options: dict[str, Any] = {"exact": exact, "partition_size": 2**10}
    whole = run(here, f"whole-{exact}", **options)
    # Folders of parts are named as in the whole: by files that lie in each.
    parts = []
    for name in ("few", "many"):
        other = "many" if name == "few" else "few"
        hidden = here / "corpus" / other
        kept = hidden.rename(here / f"kept-{other}")
        (here / "corpus" / other).mkdir()
        first = sorted(kept.iterdir())[0]
        (hidden / first.name).write_bytes(b"")
        parts.append(run(here, f"part-{name}-{exact}", **options).out)
        shutil.rmtree(hidden)
        kept.rename(hidden)
    merged = merge_stats(
        MergeStatsRequest(
            parts=tuple(reversed(parts)), workspace=Workspace(here), out=here / f"merged-{exact}"
        )
    )
    assert merged.sections["sources"] == whole.sections["sources"]
    for key in ("top_ngrams", "clean_heads", "worst_rows", "sources", "uncompressed"):
        assert merged.sections[key] == whole.sections[key]
    assert merged.columns == whole.columns
    assert verify(VerifyRequest(path=merged.out)).ok


def test_lookup_knows_how_often_at_most(here: Path, results: dict[str, HashStatsResult]) -> None:
    """Of an n-gram that neither sample holds the hits of its rows tell."""
    text = "def test_foo(self):\n        self.assertEqual(zzz, 1)\n"
    sampled, exact = (
        lookup(LookupRequest(path=results[name].out, text=text)) for name in ("sampled", "exact")
    )
    true = {
        tuple(tokens): int(count)
        for sample in exact_counts(results["exact"].out).values()
        for tokens, count in sample.items()
    }
    layout = read_stats(results["exact"].out).layout
    ids = [token.compressed_id for token in sampled.tokens]
    unknown = 0
    for at, token in enumerate(sampled.tokens):
        for order in token.orders:
            ngram = tuple([layout.filler_id] * order.order + ids[: at + 1])[-order.order :]
            times = true.get(ngram, 0)
            assert order.at_most is not None
            assert order.at_most >= times
            assert order.at_most <= times + 40
            assert order.sampled in (None, times)
            unknown += order.sampled is None and times > 0
    assert unknown > 5
    assert len(exact.tokens) == len(sampled.tokens)


def exact_counts(out: Path) -> dict[int, dict[tuple[int, ...], int]]:
    """The counts of all n-grams by order, from the partials of exact counting."""
    found = {}
    for name, state in read_stats(out).partials().items():
        if name.startswith("exact-"):
            order = int(name.removeprefix("exact-"))
            tokens = map(tuple, state["tokens"].reshape(-1, order).tolist())
            found[order] = dict(zip(tokens, state["counts"].tolist(), strict=True))
    return found


def test_the_hottest_rows_are_named(results: dict[str, HashStatsResult]) -> None:
    """What heats a row is frequent, so the sample of positions holds it."""
    for hot in inspect(InspectRequest(path=results["sampled"].out)).hottest:
        assert hot.ngrams
        most = hot.ngrams[0]
        assert 0.5 * hot.hits < most.count <= hot.hits
