"""What inspect asks a table that was filled with --init next-token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from engram_cli.commands.requests.corpus import CorpusFields, FillRequest
from engram_cli.commands.requests.options import Option, Request
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError

LEAST_POSITIONS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest(Request):
    """What to ask a table that was filled with --init next-token.

    `fill`: the corpus (and checkpoint) that the table was filled from, which the counted models
    learn from too. `heldout`: texts that are not in it, read in the same way. `positions`: at most
    so many are asked about. `layer`: None for the first.
    """

    table: Path
    heldout: tuple[str | Path, ...]
    fill: FillRequest
    vocab: Path
    layer: int | None = None
    positions: Annotated[int, Option("", least=LEAST_POSITIONS)] = 8000
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions(CorpusFields):
    """The options of `inspect` for a `ProbeRequest`."""

    PANEL = "What a next-token table knows"

    heldout: Annotated[
        tuple[str, ...],
        Option(
            "Held-out text: measure how well the table alone predicts it, compared with exact "
            "n-gram counts. Can be repeated.",
            name="probe",
            reads="stream",
        ),
    ] = ()
    sources: Annotated[
        tuple[str, ...],
        Option(
            "Corpus that filled the table; the exact n-grams are counted on it.",
            name="corpus",
            reads="stream",
        ),
    ] = ()
    checkpoint: Annotated[
        Path | None, Option("Model whose embeddings fill the rows.", reads="ranges")
    ] = None
    layer: Annotated[int | None, Option("Layer to probe (the first).")] = None
    positions: Annotated[
        int, Option("Maximum number of positions to probe.", least=LEAST_POSITIONS)
    ] = 8000

    def resolved(self, given: Mapping[str, Any]) -> ProbeRequest | None:
        """Return the request, or None if no text to probe is given."""
        if not self.heldout:
            if self.sources or self.checkpoint is not None:
                raise InputError("a corpus or a checkpoint, and no text", "give one with --probe")
            return None
        if not self.sources:
            raise InputError(
                "--probe without a corpus", "give the one that filled the table with --corpus"
            )
        here = Workspace(given["workspace"])
        return ProbeRequest(
            table=given["path"],
            heldout=self.heldout,
            fill=FillRequest(
                sources=self.sources,
                checkpoint=self.checkpoint,
                workspace=here,
                **{each.name: getattr(self, each.name) for each in fields(CorpusFields)},
            ),
            vocab=given["vocab"] or here.vocab,
            layer=self.layer,
            positions=self.positions,
            threads=given["threads"],
        )
