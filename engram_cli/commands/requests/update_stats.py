"""The request of `engram hash-stats`: a corpus to count, or documents to add to statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from engram_cli.commands.geometry import LAYOUT_NAMES
from engram_cli.commands.requests.corpus import HashStatsRequest
from engram_cli.commands.requests.options import Option, Rule

CHANGING = "Statistics that follow a corpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStatsRequest(HashStatsRequest):
    """Which statistics to change, and by which documents.

    `to`: the statistics folder; `out` None replaces it. `add`, `remove`: the documents, read as
    `HashStatsRequest` reads a corpus. `sources`: the corpus as it is afterwards, from which
    everything is counted again and checked against the change; () leaves out what cannot be
    subtracted. Layout, sample size and sections are those of `to`; a recount also has the sections
    and the sample size that are asked for here.
    """

    RULES = (
        *HashStatsRequest.RULES,
        Rule(
            lambda request: request.to is None and bool(request.add or request.remove),
            "--add and --remove change statistics, and none are named",
            "name them: --to engram-stats",
        ),
        Rule(
            lambda request: request.to is not None and not (request.add or request.remove),
            "nothing is to be added to {0.to} or removed from it",
            "give --add MORE or --remove GONE",
        ),
        Rule(
            lambda request: request.to is None and not request.sources,
            "no corpus is named",
            "name files or folders to read, or - for standard input",
        ),
    )

    sources: Annotated[
        tuple[str | Path, ...],
        Option(
            "Files, folders, globs, addresses or org/name of the Hugging Face Hub to read; - reads "
            "standard input. With --merge, statistics folders. With --to, the whole corpus as it "
            "is after the change, to recount what cannot be subtracted (none).",
            argument=True,
            reads="stream",
        ),
    ] = ()
    to: Annotated[
        Path | None,
        Option(
            "Statistics folder to change by --add and --remove; it is replaced unless --out names "
            "another.",
            panel=CHANGING,
            reads="ranges",
        ),
    ] = None
    add: Annotated[
        tuple[str | Path, ...],
        Option(
            "Files or folders of documents to add to the statistics. Can be repeated.",
            panel=CHANGING,
            metavar="MORE",
            reads="stream",
        ),
    ] = ()
    remove: Annotated[
        tuple[str | Path, ...],
        Option(
            "Files or folders of documents to take out of the statistics, as they were counted. "
            "Can be repeated.",
            panel=CHANGING,
            metavar="GONE",
            reads="stream",
        ),
    ] = ()

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the options of the layout, which statistics that are changed have already."""
        if given["to"] is not None:
            return LAYOUT_NAMES | {"preset"}
        return HashStatsRequest.overruled(given)
