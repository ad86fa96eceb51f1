"""The request of `engram diff`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engram_cli.commands.requests.corpus import CorpusFields
from engram_cli.commands.requests.options import (
    WORKSPACE,
    Force,
    Option,
    Rule,
    Threads,
    Vocab,
    revision_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffRequest(CorpusFields):
    """What to compare, and what names the n-grams of the changed rows.

    `stats` None: those next to `before` or `after`, unless there are `sources`: a corpus to read.
    `at_least`: the norm of a difference from which a row counts for the n-grams, None for those
    that stand out. `ngrams`: listed of each order. `patch_before`, `patch_after`: stacked on the
    sides, in this order. `patch`: a file for the changed rows. `report`: an HTML page to write.
    """

    RULES = (
        Rule(
            lambda request: request.stats is not None and bool(request.sources),
            "--stats and --corpus both name n-grams",
            "give one of them",
        ),
        Rule(
            lambda request: request.at_least is not None and not request.at_least > 0,
            "--at-least {0.at_least:g}",
            "give a norm above 0",
        ),
    )

    before: Annotated[
        Path,
        Option(
            "Rows as they were: a table, bundle or checkpoint with tables: a path, org/name of the "
            "Hugging Face Hub, or an address. A patch stands for AFTER under it.",
            argument=True,
            reads="ranges",
        ),
    ]
    after: Annotated[
        Path,
        Option(
            "Rows as they are now, of the same layout; the format and the dtype may differ. A "
            "patch stands for BEFORE under it.",
            argument=True,
            reads="ranges",
        ),
    ]
    revision: Annotated[str | None, revision_of("before", "the artifact before")] = None
    patch_before: Annotated[
        tuple[Path, ...],
        Option(
            "Patch or overlay to stack on BEFORE, without changing it. Can be repeated; on a row "
            "of several patches, the last one counts.",
            metavar="PATCH",
            reads="ranges",
        ),
    ] = ()
    patch_after: Annotated[
        tuple[Path, ...],
        Option("The same for AFTER.", metavar="PATCH", reads="ranges"),
    ] = ()
    stats: Annotated[
        Path | None,
        Option(
            "Statistics whose n-gram sample names the changed rows (those next to the artifacts).",
            reads="ranges",
        ),
    ] = None
    sources: Annotated[
        tuple[str | Path, ...],
        Option(
            "Corpus to read once for the n-grams of the changed rows. Can be repeated.",
            name="corpus",
            reads="stream",
        ),
    ] = ()
    at_least: Annotated[
        float | None,
        Option(
            "Name the n-grams of rows whose difference has at least this norm (found from the "
            "rows: those that stand out, else all that changed).",
            metavar="NORM",
        ),
    ] = None
    ngrams: Annotated[int, Option("Number of n-grams to list per order.", least=0)] = 20
    vocab: Vocab = None
    patch: Annotated[
        Path | None,
        Option(
            "Also write the changed rows as a patch, which makes AFTER of BEFORE: "
            "changes.patch.safetensors",
        ),
    ] = None
    report: Annotated[
        Path | None,
        Option("Also write the results as one HTML page that opens offline: diff.html"),
    ] = None
    threads: Threads = None
    force: Force = False
    folder: Annotated[Path, WORKSPACE] = Path()
