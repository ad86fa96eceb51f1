"""The statistics folder that hash-stats, --merge and --to write: its checks, and the writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.commands.page_facts import Facts, counted_on
from engram_cli.errors import OutputError
from engram_cli.outputs import prepare_output
from engram_cli.report.page import write_page
from engram_cli.report.place import check_page
from engram_cli.stats.names import Names
from engram_cli.stats.results import split_results, statistics_page
from engram_cli.stats.state import State
from engram_cli.stats.statistic import Results
from engram_cli.stats.statistics.collisions import ColumnStats
from engram_cli.stats.statistics.orders import OrderStats
from engram_cli.stats.stats_io import STATISTICS_FOLDER, read_stats, write_stats
from engram_cli.stats.totals import Counts
from engram_cli.stats.verdict_view import StatedVerdict
from engram_cli.vocab.compress import CompressedVocab


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsResult:
    """The results of a corpus under a layout, as in stats.json; `sections` are the further ones.

    `verdict`: what follows from them for a table of this size; not in the statistics folder.
    """

    out: Path
    scheme: str
    fingerprint: str
    layers: tuple[int, ...]
    files: int
    empty_files: int
    documents: int
    tokens: int
    join_documents: bool
    orders: tuple[OrderStats, ...]
    columns: tuple[ColumnStats, ...]
    sections: dict[str, object]
    verdict: StatedVerdict | None


def sample_texts(counts: Counts, vocab: CompressedVocab | None) -> Mapping[int, str] | None:
    """Return the text of each compressed id in the samples; None without a vocabulary."""
    tokens = np.concatenate([sample.tokens.reshape(-1) for sample in counts.samples])
    return Names(counts.layout, vocab).texts(tokens)


def write_statistics(
    counts: Counts,
    results: Callable[[], Mapping[str, object]],
    out: Path,
    *,
    force: bool,
    report: Path | None,
    corpus: Mapping[str, int],
    partials: Mapping[str, State],
    texts: Callable[[], Mapping[int, str] | None],
    facts: Facts,
    finished: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the statistics folder `out`, and the page `report` if one is asked for.

    Returns the fields of a `StatisticsResult`. `results` and `texts` compute them while files are
    written. `facts`: what the page says of the corpus. `finished` is called with the digest before
    the folder is in place.
    """
    found = write_stats(
        counts,
        results,
        out,
        corpus=corpus,
        partials=partials,
        texts=texts,
        force=force,
        finished=finished,
    )
    if report is not None:
        statistics = read_stats(out)
        page = statistics_page(statistics, (*facts, *counted_on(statistics)))
        write_page(page, report, force=force)
    return {
        "out": out,
        "scheme": counts.layout.scheme,
        "fingerprint": counts.layout.fingerprint,
        "layers": counts.layout.layer_ids,
        "files": corpus.get("files", 0),
        "empty_files": corpus.get("empty_files", 0),
        "documents": counts.documents,
        "tokens": counts.tokens,
        "join_documents": counts.joined,
        **split_results(Results(tokens=counts.tokens, documents=counts.documents, found=found)),
    }


def check_statistics(
    out: Path,
    report: Path | None,
    *,
    force: bool,
    inputs: Sequence[Path | str | None],
    artifacts: Sequence[Path] = (),
    replaces: bool = False,
) -> None:
    """Raise OutputError for a folder or page that may not be replaced, or cannot be written.

    `inputs`: what is read; `artifacts`: of these, the folders that a page may not lie in.
    `replaces`: `out` is the folder that is changed.
    """
    prepare_output(out, STATISTICS_FOLDER, force=force or replaces, inputs=inputs)
    _check_writable(out, "--out")
    if report is not None:
        check_page(report, force, option="--report", inputs=inputs, artifacts=(out, *artifacts))
        _check_writable(report, "--report")


def _check_writable(out: Path, option: str) -> None:
    """Raise OutputError now rather than after an hour of counting."""
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write {out}: {parent} is read-only", f"write elsewhere with {option}"
        )
