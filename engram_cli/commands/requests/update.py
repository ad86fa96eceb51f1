"""The request of `engram update`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engram_cli.commands.requests.corpus import CorpusFields
from engram_cli.commands.requests.options import (
    WORKSPACE,
    DryRun,
    Force,
    Option,
    Rule,
    Threads,
    Vocab,
)
from engram_cli.sizes import read_size


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTableRequest(CorpusFields):
    """Which documents to add to a table, and which to remove from it.

    `out` None changes the table in place. `sources`: the whole corpus as it is to be, for a table
    that keeps no sums; with it the table is filled again. `patch`: a file for the changed rows.
    `memory`: bytes, None for half of what is free. `vocab` None: the one in `folder`. With
    `dry_run` the documents are read and the rows checked, and nothing is written.
    """

    RULES = (
        Rule(
            lambda request: not (request.add or request.remove or request.sources),
            "no documents are given",
            "give --add or --remove, or the whole corpus with --corpus",
        ),
        Rule(
            lambda request: request.keep_sums and not request.sources,
            "--keep-sums without --corpus",
            "a table with sums keeps them; to begin, give the whole corpus with --corpus",
        ),
        Rule(
            lambda request: request.patch is not None and bool(request.sources),
            "--patch with --corpus",
            "leave it out: the changed rows are known where the table keeps sums",
        ),
    )

    table: Annotated[
        Path,
        Option(
            "Table to change, filled with --init next-token or token-mean (engram-table.zarr).",
            argument=True,
            place="table",
        ),
    ]
    add: Annotated[
        tuple[str | Path, ...],
        Option(
            "Documents to add: files, folders, globs, addresses or org/name of the Hugging Face "
            "Hub. Can be repeated.",
            reads="stream",
        ),
    ] = ()
    remove: Annotated[
        tuple[str | Path, ...],
        Option(
            "Documents to remove, as they were when they filled the table. Can be repeated.",
            reads="stream",
        ),
    ] = ()
    sources: Annotated[
        tuple[str | Path, ...],
        Option(
            "For a table without sums: the whole corpus as it is to be, to fill all rows from. "
            "Can be repeated.",
            name="corpus",
            reads="stream",
        ),
    ] = ()
    keep_sums: Annotated[
        bool, Option("With --corpus: keep sums from now on (if the table kept them).")
    ] = False
    checkpoint: Annotated[
        Path | None,
        Option("Model whose token embeddings filled the table, if one did.", reads="ranges"),
    ] = None
    out: Annotated[
        Path | None, Option("Write the changed table here (change it in place).", short="-o")
    ] = None
    patch: Annotated[
        Path | None, Option("Also write the changed rows as a patch: update.patch.safetensors")
    ] = None
    memory: Annotated[
        int | None,
        Option(
            "Memory limit, such as 4GB (half of the free memory).",
            metavar="SIZE",
            parser=read_size,
            least=2**26,
        ),
    ] = None
    vocab: Vocab = None
    threads: Threads = None
    dry_run: DryRun = False
    force: Force = False
    folder: Annotated[Path, WORKSPACE] = Path()
