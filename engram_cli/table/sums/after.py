"""The sums of a table as an update leaves them: documents, states of columns, scales of layers."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows import DTYPES
from engram_cli.table.inits.corpus.documents import document_hashes
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.kernels import weighted_sum
from engram_cli.table.inits.corpus.pairs import TokenPairs
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.kept_sums import KeptSums, documents_array
from engram_cli.table.sums.change import DocumentChange, distinct_tokens, without
from engram_cli.table.sums.opened import OpenTable
from engram_cli.table.sums.rows import stored_scale


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenVectors:
    """The vectors of `tokens` int64[n], ascending: those that the changed documents have."""

    table: OpenTable
    embeddings: Embeddings
    tokens: NDArray[np.int64]

    def of_column(self, layer: int, column: int) -> NDArray[np.int16]:
        """Return int16[n, W], in the scale that the column was filled with."""
        scale = self.table.sums.kept.columns[layer, column].scale
        return self.embeddings.some(layer, column, self.table.about.dim, self.tokens, scale)

    def weighted(self, counts: NDArray[np.int64], place: tuple[int, int]) -> NDArray[np.int64]:
        """Return int64[dim]: the sum of `counts` [n] x the vectors of a layer's column."""
        found = np.zeros(self.table.about.dim, dtype=np.int64)
        if counts.any():
            weighted_sum(self.of_column(*place), counts, found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SumsAfter:
    """What describes the sums after an update.

    `hashes` uint64[documents], ascending. `scales`: float32[1] of each layer, for a dtype with one
    per layer.
    """

    hashes: NDArray[np.uint64]
    vectors: TokenVectors
    kept: KeptSums
    scales: Mapping[int, NDArray[np.float32]]

    def moves_every_row(self, table: OpenTable) -> bool:
        """Return whether rows change that no changed document touches."""
        before = table.sums.kept
        moved = before.followed != self.kept.followed or before.columns != self.kept.columns
        return moved or any(
            stored_scale(table.about, layer) != scale for layer, scale in self.scales.items()
        )


def sums_after(
    table: OpenTable, change: DocumentChange, embeddings: Embeddings, *, threads: int
) -> SumsAfter:
    """Return what the change makes of a table's sums. Raises MismatchError, InputError."""
    parameters = change.parameters(table.about.attributes["init"]["parameters"])
    tokens = distinct_tokens(change, table.layout.vocab_size)
    hashes = _hashes(table, change, parameters)
    vectors = TokenVectors(table=table, embeddings=embeddings, tokens=tokens)
    kept = replace(table.sums.kept, parameters=parameters)
    if kept.init == "next-token" and "centre" not in parameters:
        kept = _with_totals(kept, table, change, vectors, threads)
    row_type = DTYPES.load(table.about.dtype)
    scales = _layer_scales(table, kept, row_type) if row_type.of_layer else {}
    return SumsAfter(hashes=hashes, vectors=vectors, kept=kept, scales=scales)


def token_pairs(table: OpenTable, file: TokenFile) -> TokenPairs:
    """Return the pairs that documents add to the rows of a table."""
    follow = table.sums.kept.init == "next-token"
    return TokenPairs(layout=table.layout, file=file, follow=follow, joined=False)


def _hashes(
    table: OpenTable, change: DocumentChange, after: Mapping[str, Any]
) -> NDArray[np.uint64]:
    """Return the hashes of the documents afterwards. Raises MismatchError."""
    if table.interrupted is not None:
        count = int(after["documents"])
        file = table.about.path / documents_array(count).file(0)
        if file.stat().st_size == 8 * count:
            there = np.fromfile(file, dtype="<u8")
            if int(np.add.reduce(there, dtype=np.uint64)) == int(after["documents_xxh64"], 16):
                return there
    hashes = np.array(table.sums.hashes())
    if change.added is not None:
        hashes = np.sort(np.concatenate([hashes, document_hashes(change.added.map())]))
    if change.removed is not None:
        hashes = without(hashes, document_hashes(change.removed.map()))
    return hashes


def _with_totals(
    kept: KeptSums,
    table: OpenTable,
    change: DocumentChange,
    vectors: TokenVectors,
    threads: int,
) -> KeptSums:
    """Return the sums with the totals of their columns, and how many vectors are in each."""
    counts = np.zeros(table.layout.vocab_size, dtype=np.int64)
    for file, sign in ((change.added, 1), (change.removed, -1)):
        if file is not None:
            counts += sign * token_pairs(table, file).follower_counts()
    columns = {}
    with ThreadPoolExecutor(threads) as pool:
        totals = pool.map(partial(vectors.weighted, counts[vectors.tokens]), kept.columns)
        for (place, state), total in zip(kept.columns.items(), totals, strict=True):
            changed = (int(a) + int(b) for a, b in zip(state.total, total, strict=True))
            columns[place] = replace(state, total=tuple(changed))
    return replace(kept, columns=columns, followed=kept.followed + int(counts.sum()))


def _layer_scales(
    table: OpenTable, kept: KeptSums, row_type: Any
) -> dict[int, NDArray[np.float32]]:
    """Return the scale of each layer afterwards, as a build finds it."""
    found = {}
    for layer in table.layout.layer_ids:
        if kept.layer_scale is not None:
            found[layer] = np.array([kept.layer_scale], dtype=np.float32)
            continue
        bound = 0.0
        for column in range(table.layout.columns):
            own = kept.columns[layer, column]
            mean = float(np.abs(own.mean(kept.followed)).max())
            bound = max(bound, (float(own.largest) + mean) * own.scale)
        found[layer] = np.array([row_type.layer_scale(bound)], dtype=np.float32)
    return found
