"""What an update found and did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engram_cli.table.inits.corpus.tokens import TokenFile


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentCount:
    """How many documents, and the tokens in them."""

    documents: int
    tokens: int

    @classmethod
    def of(cls, file: TokenFile | None) -> DocumentCount | None:
        """Return the counts of a token file."""
        return None if file is None else cls(documents=file.documents, tokens=file.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTableResult:
    """What an update did, or after a dry run would do: then `written` is False and `digest` "".

    `added`, `removed`: the documents, None where none were given. `documents`, `tokens`: of the
    table afterwards. `refilled`: whether all rows were filled again from the corpus. `rows`: those
    of the table; `touched_rows`: those that the documents fall on, None where that is not known: a
    table that was refilled, an update that was completed. `written_rows`: those that are written
    again, which are all if the mean over the corpus moves (`centre`: what rows are centred on, None
    for token-mean). `sums_bytes`: of kept sums on the disk, 0 without. `completed`: whether this
    was the rest of an update that was interrupted; `already`: whether that one had updated the
    table, and was only killed before it had printed its result. `patch`: the file of changed rows,
    None without; `patch_rows`: those whose bytes changed.
    """

    table: Path
    out: Path
    added: DocumentCount | None
    removed: DocumentCount | None
    documents: int
    tokens: int
    centre: str | None
    refilled: bool
    rows: int
    touched_rows: int | None
    written_rows: int | None
    row_bytes: int
    sums_bytes: int
    memory_bytes: int
    digest_before: str
    digest: str
    written: bool
    completed: bool
    already: bool
    patch: Path | None
    patch_rows: int = 0
    seconds: float
