"""The verdict: its sizes are tried by counting again, its bounds against the ranked rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsResult, hash_stats
from engram_cli.commands.requests.corpus import HashStatsRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.numbers import mean
from engram_cli.stats.statistic import Results
from engram_cli.stats.verdict import CACHES, OrderSize, Target, Verdict, verdict_of
from engram_cli.stats.verdict_view import (
    _commands,
    _facts,
    _picture,
    headline,
    next_commands,
    verdict_view,
)
from engram_cli.view import Summary

Count = Callable[..., HashStatsResult]


@pytest.fixture(scope="module")
def count(tmp_path_factory: pytest.TempPathFactory) -> Count:
    """Counts 40,000 ids that follow Zipf's law, with `rows` per head."""
    folder = tmp_path_factory.mktemp("verdict")
    weights = 1.0 / np.arange(1, 3001)
    ids = np.random.default_rng(1).choice(3000, (400, 100), p=weights / weights.sum())
    np.save(folder / "ids.npy", ids.astype(np.int32))

    def counted(rows: int, scheme: str = "qwen-ple", **more: object) -> HashStatsResult:
        request = HashStatsRequest(
            sources=(folder / "ids.npy",),
            geometry=Geometry(
                scheme=scheme,
                vocab_size=3000,
                eos_id=2999 if scheme == "qwen-ple" else None,
                heads=4,
                layers=(1,),
                rows_per_head=(rows,),
            ),
            workspace=Workspace(folder),
            threads=1,
            force=True,
        )
        return hash_stats(replace(request, **more))  # type: ignore[arg-type]

    return counted


def results_of(result: HashStatsResult, *left_out: str) -> Results:
    found = {"orders": result.orders, "columns": result.columns, **result.sections}
    kept = {key: value for key, value in found.items() if key not in left_out}
    return Results(tokens=result.tokens, documents=result.documents, found=kept)


def judged(result: HashStatsResult, *left_out: str) -> Verdict:
    verdict = verdict_of(results_of(result, *left_out))
    assert verdict is not None
    return verdict


def test_a_table_of_the_said_size_shares_as_much_as_was_said(count: Count) -> None:
    verdict = judged(count(5_000))
    assert [target.share for target in verdict.targets] == [0.5, 0.1]
    for target in verdict.targets:
        again = judged(count(int(target.option)))
        assert again.ideal == pytest.approx(target.share, abs=0.01)
        # Measured: a few frequent n-grams decide, in 4 heads of 2 orders.
        assert again.shared == pytest.approx(target.share, abs=0.05)
        now = next(each for each in again.targets if each.share == target.share)
        assert now.factor == pytest.approx(1.0, abs=0.02)


def test_a_layout_unlike_a_random_hash_is_pointed_out(count: Count) -> None:
    """The tutorial's multipliers leave small ids close to each other."""
    for scheme, warned in (("tutorial", True), ("qwen-ple", False)):
        [view] = verdict_view(results_of(count(20_000, scheme=scheme)))
        first, figures = (part for part in view.parts if isinstance(part, Summary))
        assert first.headline
        assert ("caution" in dict(figures.facts)) is warned


def test_bounds_hold_what_the_hottest_rows_serve(count: Count) -> None:
    result = count(5_000, locality=True)
    exact, bounds = judged(result).caught, judged(result, "locality").caught
    assert [each.rows_share for each in bounds] == list(CACHES)
    for known, bound in zip(exact, bounds, strict=True):
        assert (known.source, bound.source) == ("counted", "bounds")
        assert known.low == known.high
        assert bound.low <= known.low <= bound.high
        assert bound.low < bound.high


def test_held_out_text_comes_before_what_was_counted(count: Count) -> None:
    result = count(5_000, holdout=0.25)
    [hot] = [judged(result).caught[0]]
    locality = result.sections["locality"]
    at = locality.hot[0].rows_share.index(CACHES[0])  # type: ignore[attr-defined]
    assert hot.source == "held out"
    assert hot.low == mean(each.held_out[at] for each in locality.hot)  # type: ignore[attr-defined]


def test_the_shares_are_those_of_the_columns(count: Count) -> None:
    result = count(20_000)
    verdict = judged(result)
    assert verdict.total_rows == sum(each.rows for each in result.columns)
    assert verdict.used == pytest.approx(
        sum(each.occupied for each in result.columns) / verdict.total_rows
    )
    shares = [each.shared_occurrences for each in result.columns]
    assert (verdict.least_shared, verdict.most_shared) == (min(shares), max(shares))
    assert verdict.none_clean is not None
    assert 0.0 <= verdict.none_clean < verdict.shared


def test_no_columns_no_verdict(count: Count) -> None:
    results = results_of(count(5_000), "columns")
    assert verdict_of(results) is None
    assert verdict_view(results) == ()
    assert next_commands(()) == next_commands(verdict_view(results))


def test_programs_get_what_is_shown(count: Count) -> None:
    result = count(5_000)
    assert result.verdict is not None
    [view] = verdict_view(results_of(result))
    first, figures = (part for part in view.parts if isinstance(part, Summary))
    assert result.verdict.figures == judged(result)
    assert result.verdict.headline == first.headline.replace("\u202f", " ")
    named = [(each.command, each.gives.replace(" %", "\u202f%")) for each in result.verdict.next]
    assert named == list(figures.commands)
    assert len(named) == 3


def _verdict(shared: float, *factors: float) -> Verdict:
    """A verdict with this sharing, and these sizes for 50 % and 10 %."""
    targets = tuple(
        Target(share=share, factor=factor, rows=(int(1000 * factor),) * 2, error=0.0)
        for share, factor in zip((0.5, 0.1), factors, strict=False)
    )
    return Verdict(
        orders=(OrderSize(order=2, rows=1000.0, distinct=700.0, error=0.0),),
        layers=1, heads=8, total_rows=8000, used=0.5, shared=shared, least_shared=shared,
        most_shared=shared, ideal=shared, targets=targets, caught=(), none_clean=None,
        larger_corpus=None, growth_measured=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shared", "said"),
    [(0.95, "far too small"), (0.6, "is small"), (0.3, "suits"), (0.02, "is large")],
)
def test_the_sentence_follows_from_the_share(shared: float, said: str) -> None:
    assert said in headline(_verdict(shared))


def test_sizes_of_orders_that_differ_are_all_named() -> None:
    target = Target(share=0.5, factor=2.0, rows=(2000, 4000), error=0.0)
    assert target.option == "2000,4000"
    assert replace(target, rows=(2000, 2000)).option == "2000"


def _drawn(verdict: Verdict) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return the sizes and marks of the picture, and the figures below it."""
    table = _picture(verdict)
    return [(str(row[0]), str(row[3])) for row in table.rows], dict(_facts(verdict))


def test_a_table_that_has_a_named_size_has_one_line_for_it() -> None:
    lines, facts = _drawn(_verdict(0.1, 0.2, 0.995))
    assert len({size for size, _ in lines}) == len(lines)
    assert [mark for _, mark in lines if mark] == [
        "50\u202f% sharing", "you are here, measured: 10.0\u202f%"
    ]  # fmt: skip
    assert facts["10\u202f% sharing"] == "what this table has (random hash)"
    named = [command for command, _ in _commands(_verdict(0.1, 0.2, 0.995))]
    assert named == ["engram build-table", "engram build-table --rows-per-head 200"]


def test_orders_that_the_search_of_primes_sets_apart_are_even() -> None:
    verdict = _verdict(0.3)
    apart = (verdict.orders[0], replace(verdict.orders[0], order=3, rows=1060.0))
    assert replace(verdict, orders=apart).even
    lines, facts = _drawn(replace(verdict, orders=apart))
    assert ("1\u202fk", "you are here, measured: 30.0\u202f%") in lines
    assert "1\u202fk rows per head" in facts["rows used"]


def test_orders_of_other_sizes_are_all_in_the_picture() -> None:
    verdict = _verdict(0.3)
    apart = (verdict.orders[0], replace(verdict.orders[0], order=3, rows=4000.0))
    assert not replace(verdict, orders=apart).even
    lines, _ = _drawn(replace(verdict, orders=apart))
    assert ("1\u202fk, 4\u202fk", "you are here, measured: 30.0\u202f%") in lines


def test_an_order_without_ngrams_shares_nothing() -> None:
    empty = OrderSize(order=2, rows=1000.0, distinct=0.0, error=0.0)
    assert empty.sharing(1.0) == 0.0
    assert empty.sharing(1e-9) == 0.0


def test_a_full_table_shares_everything() -> None:
    full = OrderSize(order=2, rows=10.0, distinct=1e9, error=0.0)
    assert full.sharing(1.0) == 1.0
    assert full.sharing(1e9) == pytest.approx(0.095, abs=0.001)


def test_a_table_without_shared_rows_says_so() -> None:
    assert headline(replace(_verdict(0.3), shared=0.0)) == (
        "The table is large for this corpus: no look-up meets a row that another n-gram uses too."
    )
