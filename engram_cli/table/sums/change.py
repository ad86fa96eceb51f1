"""The documents that an update adds and removes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError, MismatchError
from engram_cli.table.inits.corpus.tokens import START, TokenFile

_PIECE = 2**22  # words at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentChange:
    """The documents to add and to remove, as token files; None for none.

    `folders`: where the pairs of each are written; they are there already.
    """

    added: TokenFile | None
    removed: TokenFile | None
    folders: tuple[Path, Path]

    @property
    def sides(self) -> tuple[TokenFile | None, TokenFile | None]:
        """What is added, and what is removed."""
        return self.added, self.removed

    @property
    def request(self) -> dict[str, Any]:
        """The documents by their digests: an interrupted update is completed by an equal one."""
        return {
            name: None if file is None else [file.tokens, file.documents, file.documents_digest]
            for name, file in zip(("added", "removed"), self.sides, strict=True)
        }

    def parameters(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of the init after the change. Raises InputError, MismatchError."""
        counts = {"tokens": before["tokens"], "documents": before["documents"]}
        digest = int(before["documents_xxh64"], 16)
        for file, sign in ((self.added, 1), (self.removed, -1)):
            if file is not None:
                counts["tokens"] += sign * file.tokens
                counts["documents"] += sign * file.documents
                digest += sign * int(file.documents_digest, 16)
        if counts["tokens"] < 0 or counts["documents"] < 0:
            raise MismatchError(
                "the documents to remove have more tokens than the table was filled from",
                "remove documents that filled the table, read with the same options",
            )
        if not counts["documents"]:
            raise InputError(
                "no document would be left", "build a table with --init zeros, or remove fewer"
            )
        return {**before, **counts, "documents_xxh64": f"{digest % 2**64:016x}"}


def without(hashes: NDArray[np.uint64], removed: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return `hashes` uint64[n] less those `removed`, each as often as it is there; ascending all.

    Raises MismatchError for hashes that are not there so often.
    """
    rank = np.arange(len(removed)) - np.searchsorted(removed, removed)
    places = np.searchsorted(hashes, removed) + rank
    there = places < len(hashes)
    there[there] = hashes[places[there]] == removed[there]
    missing = int(np.count_nonzero(~there))
    if missing:
        raise MismatchError(
            f"{missing:,} of {len(removed):,} documents to remove are not among those that filled "
            "the table",
            "remove documents that filled it, split and tokenised in the same way",
        )
    return np.delete(hashes, places)


def distinct_tokens(change: DocumentChange, vocab_size: int) -> NDArray[np.int64]:
    """Return the tokens of the documents, ascending, int64[n]."""
    there = np.zeros(vocab_size, dtype=bool)
    for file in change.sides:
        words = np.empty(0, dtype=np.uint32) if file is None else file.map()
        for begin in range(0, len(words), _PIECE):
            there[words[begin : begin + _PIECE] & np.uint32(START - 1)] = True
    return np.flatnonzero(there)
