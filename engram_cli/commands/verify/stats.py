"""Verifying a statistics folder: hits, samples, partials, and every figure that follows from them.

The figures are computed again as `hash-stats --merge` computes them, and compared with stats.json
key by key, so that a new figure is verified without a line here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError
from engram_cli.progress import Progress
from engram_cli.stats import DOCUMENT
from engram_cli.stats.collector_set import read_collected
from engram_cli.stats.partial import LONG, Partial
from engram_cli.stats.results import all_results
from engram_cli.stats.sampling.text_ngrams import EXACT_OF
from engram_cli.stats.stats_io import COUNTERS, FIXED_KEYS, Statistics, figures_document
from engram_cli.stats.totals import Counts
from engram_cli.table.attributes import group_problem
from engram_cli.version import __version__
from engram_cli.vocab.compress import CompressedVocab

_MOST_PROBLEMS, _MOST_NAMES = 20, 4
_DROPPED = (("'locality'", "windows"),)  # keys of earlier versions that are no longer computed
_CLOSE = 1e-9  # what another processor may round otherwise
# What names an entry of a list in a message.
_NAMES = ("layer", "order", "head", "row", "tokens", "factor")


def stats_problems(
    statistics: Statistics, vocab: CompressedVocab | None, progress: Progress
) -> tuple[list[str], list[str]]:
    """Return what is wrong with counters, sample, partials or figures in stats.json, and which
    figures cannot be computed again.

    `vocab`: the vocabulary of the layout, which gives n-grams their texts.
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
        partials = statistics.partials()
    except ArtifactError as error:
        return [*problems, error.message], []
    if problems:
        return problems, []
    counts = Counts(
        layout=statistics.layout,
        tokens=statistics.tokens,
        documents=statistics.documents,
        joined=statistics.joined,
        hits=hits,
        samples=samples,
    )
    try:
        collected = read_collected(statistics.layout, partials)
        return _figure_problems(statistics, Partial(counts=counts, collected=collected), vocab)
    except ArtifactError as error:
        return [error.message], []


def _group_problems(statistics: Statistics) -> list[str]:
    """Return what is wrong with the metadata of the folder's Zarr groups."""
    groups = [statistics.path / name for name in (COUNTERS, LONG)]
    found = [group_problem(group) for group in groups if group.name == COUNTERS or group.is_dir()]
    return [problem for problem in found if problem is not None]


def _figure_problems(
    statistics: Statistics, whole: Partial, vocab: CompressedVocab | None
) -> tuple[list[str], list[str]]:
    """Figures of stats.json that differ from those computed again. Raises ArtifactError."""
    document = statistics.document
    again = _again(whole, vocab)
    exact = any(name.startswith(EXACT_OF) for name in whole.collected)
    orders = zip(document["orders"], whole.counts.samples, strict=False)
    claimed = any(  # to know all n-grams, of which the sample has not all
        isinstance(e, dict) and e.get("exact") is True and not sample.exact for e, sample in orders
    )
    left: dict[str, str] = {}
    if claimed and not exact:  # so many n-grams are not kept
        reason = "the exactly counted n-grams were not kept"
        left = {key: reason for key in again if key not in ("tokens", "documents", "row_hits")}
    for key in document.keys() - again.keys() - FIXED_KEYS:
        left[key] = "its partial was not kept"
    problems: list[str] = []
    for key in sorted(again):
        if key in left or (key not in document and _is_older(document)):
            continue
        found = list(_differences(f"'{key}'", document.get(key), again[key], document))
        if found and any(path.endswith("text") for path, _ in found):
            plain = _again(whole, None)[key]  # counted where no vocabulary was at hand
            unnamed = list(_differences(f"'{key}'", document.get(key), plain, document))
            found = min(found, unnamed, key=len)
            if vocab is None:
                left[f"texts of {key}"] = "the vocabulary was not found"
                found = [each for each in found if not each[0].endswith("text")]
        problems += [f"{path} of {DOCUMENT} {what}" for path, what in found]
    if len(problems) > _MOST_PROBLEMS:
        problems[_MOST_PROBLEMS:] = [f"{len(problems) - _MOST_PROBLEMS} more values are wrong"]
    reasons = sorted(set(left.values()))
    return problems, [f"{_listed(left, reason)}: {reason}" for reason in reasons]


def _listed(left: dict[str, str], reason: str) -> str:
    """Return the figures that one reason leaves out, a few of them by name."""
    names = sorted(key for key, own in left.items() if own == reason)
    more = f" and {len(names) - _MOST_NAMES} more figures" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _again(whole: Partial, vocab: CompressedVocab | None) -> dict[str, Any]:
    """Return the figures as stats.json would have them."""
    with np.errstate(divide="ignore", invalid="ignore"):  # hits of 0 under an n-gram, if damaged
        found = all_results(whole, lambda: vocab)
    document = figures_document(whole.counts, found)
    value: dict[str, Any] = json.loads(json.dumps(document))
    return value


def _is_older(document: dict[str, Any]) -> bool:
    return document.get("tool_version") != __version__


def _differences(
    path: str, stored: Any, again: Any, document: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """(where, what) for each value that is another one in stats.json."""
    if isinstance(stored, dict) and isinstance(again, dict):
        for key in sorted(stored.keys() | again.keys()):
            if key not in stored:
                if not _is_older(document):
                    yield f"{path} {key}", "is missing"
            elif key not in again:
                if (path, key) in _DROPPED:
                    continue
                yield f"{path} {key}", f"is {stored[key]!r}, and does not follow from the counts"
            else:
                yield from _differences(f"{path} {key}", stored[key], again[key], document)
    elif isinstance(stored, list) and isinstance(again, list) and len(stored) == len(again):
        for index, (own, other) in enumerate(zip(stored, again, strict=True)):
            yield from _differences(f"{path} {_name(other, index)}", own, other, document)
    elif not _are_equal(stored, again):
        yield path, f"is {_shown(stored)}, not {_shown(again)}"


def _name(entry: Any, index: int) -> str:
    """Return how an entry of a list is named: by its numbers, else by its place."""
    own = entry if isinstance(entry, dict) else {}
    numbers = [f"{name} {own[name]}" for name in _NAMES if isinstance(own.get(name), int)]
    return ", ".join(numbers) or f"[{index}]"


def _are_equal(stored: Any, again: Any) -> bool:
    if isinstance(stored, bool) or isinstance(again, bool):
        return stored is again
    if isinstance(stored, int | float) and isinstance(again, float):
        return math.isclose(stored, again, rel_tol=_CLOSE, abs_tol=1e-12)
    return type(stored) is type(again) and bool(stored == again)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
