"""Verifying a statistics folder: hits, samples, partials, and the figures that follow from them."""

from __future__ import annotations

import json
from typing import Any

from engram_cli.errors import ArtifactError
from engram_cli.progress import Progress
from engram_cli.stats.figures import figures
from engram_cli.stats.folder import COUNTERS, DOCUMENT, SAMPLE, Statistics
from engram_cli.stats.partial import blank_for
from engram_cli.stats.partial_files import LONG
from engram_cli.stats.totals import Counts
from engram_cli.table.attributes import group_problem

_FIGURES = ("occupied", "max_hits", "full_rows", "rows")


def stats_problems(statistics: Statistics, progress: Progress) -> list[str]:
    """What is wrong with the counters, the sample, the partials, or the figures in stats.json.

    Every column's hits must sum to the tokens, and the sampled counts must fit in their rows.
    """
    hits, problems = {}, _group_problems(statistics)
    progress.start("verify", len(statistics.layout.layers), "layers")
    for layer in statistics.layout.layer_ids:
        try:
            hits[layer] = statistics.hits(layer)
        except ArtifactError as error:
            problems.append(error.message)
        progress.advance(1)
    try:
        samples = statistics.samples()
    except ArtifactError as error:
        return [*problems, error.message]
    if problems:
        return problems
    counts = Counts(
        layout=statistics.layout,
        tokens=statistics.tokens,
        documents=statistics.documents,
        joined=statistics.joined,
        hits=hits,
        samples=samples,
    )
    try:
        return _figure_problems(counts, statistics.document) + _partial_problems(statistics, counts)
    except ArtifactError as error:
        return [error.message]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        return [f"{statistics.path / DOCUMENT}: its figures cannot be read: {error!r}"]


def _group_problems(statistics: Statistics) -> list[str]:
    """What is wrong with the metadata of the folder's Zarr groups."""
    groups = [statistics.path / name for name in (COUNTERS, LONG)]
    found = [group_problem(group) for group in groups if group.name == COUNTERS or group.is_dir()]
    return [problem for problem in found if problem is not None]


def _partial_problems(statistics: Statistics, counts: Counts) -> list[str]:
    """Sections that differ from those that the stored partials give. Raises ArtifactError."""
    problems = []
    for name, state in statistics.partials().items():
        collector = blank_for(name, counts.layout, state)
        collector.absorb(state)
        section = json.loads(json.dumps(collector.section(counts)))
        if section is not None and statistics.document.get(collector.name) != section:
            problems.append(f"'{collector.name}' of {DOCUMENT} is not what its partial gives")
    return problems


def _figure_problems(counts: Counts, document: dict[str, Any]) -> list[str]:
    """Figures that differ from those that the counters and the sample give."""
    again = figures(counts)
    problems = []
    stored = {(c["layer"], c["order"], c["head"]): c for c in document["columns"]}
    for column in again.columns:
        place = f"layer {column.layer}, order {column.order}, head {column.head}"
        own = stored.get((column.layer, column.order, column.head))
        if own is None:
            problems.append(f"{DOCUMENT} has no figures of {place}")
            continue
        problems += [
            f"{place}: {name} is {own[name]!r} in {DOCUMENT}, {getattr(column, name)!r} in the "
            f"{COUNTERS}"
            for name in _FIGURES
            if own[name] != getattr(column, name)
        ]
    if "row_hits" in document and document["row_hits"] != again.sections["row_hits"]:
        problems.append(f"'row_hits' of {DOCUMENT} is not what the {COUNTERS} give")
    problems += [
        f"order {entry['order']}: {entry['windows']:,} windows, {counts.tokens:,} tokens"
        for entry in document["orders"]
        if entry["windows"] != counts.tokens
    ]
    for order, entry in zip(again.orders, document["orders"], strict=True):
        if not entry["exact"] and entry["distinct"] != order.distinct:
            problems.append(
                f"order {order.order}: {entry['distinct']!r} different n-grams in {DOCUMENT}, "
                f"{order.distinct!r} in {SAMPLE}"
            )
    return problems
