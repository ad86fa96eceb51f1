"""Changes the records and rows of one layer: pairs of documents in, rows in place out.

A column is cut into blocks of rows, a block into buckets. A bucket is the unit of the journal: its
new records are written there whole before the first of them is written to its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.hashing.hasher import LayerPlan
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.table.inits.corpus import kernels as fill_kernels
from engram_cli.table.inits.corpus.buckets import (
    BufferPool,
    ColumnPart,
    ColumnVectors,
    bucket_bits,
    deal_out,
)
from engram_cli.table.kept_sums import ColumnState
from engram_cli.table.sums import kernels
from engram_cli.table.sums.journal import Slot, UpdateJournal
from engram_cli.table.sums.rows import LayerRows, Lines

BLOCK_ENTRIES = 2**24  # of one side, held by a thread at a time: 128 MiB
_PIECE_BYTES = 2**20  # float32 values made while in the L2 cache
_REFILL = "give the whole corpus with --corpus: the table is filled again, sums included"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The rows begin..end-1 of a column; `number`: that of its first bucket in the whole update."""

    layer: int
    column: int
    begin: int
    end: int
    number: int

    @property
    def shift(self) -> int:
        """log2 of the rows of a bucket."""
        return bucket_bits(self.end - self.begin)

    @property
    def buckets(self) -> int:
        """The number of buckets."""
        return ((self.end - self.begin - 1) >> self.shift) + 1


def blocks_of(layout: HashLayout, most_pairs: Mapping[int, int]) -> list[Block]:
    """Return the blocks of all layers; `most_pairs`: a bound of the pairs of each order."""
    found: list[Block] = []
    number = 0
    for entry in layout.layers:
        for column, modulus in enumerate(entry.moduli):
            pairs = most_pairs[layout.orders[column // layout.heads]]
            count = min(max(-(-pairs // BLOCK_ENTRIES), 1), modulus)
            bounds = [modulus * at // count for at in range(count + 1)]
            for begin, end in pairwise(bounds):
                block = Block(layer=entry.layer, column=column, begin=begin, end=end, number=number)
                number += block.buckets
                found.append(block)
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changed:
    """Rows of a bucket as they will be: ids in the layer, records, and as stored."""

    rows: NDArray[np.int64]
    records: NDArray[np.int64]
    lines: Lines


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SideState:
    """What rows are made with: the columns' states, how many vectors their means are of, and the
    scale float32[1] of the layer, None where it has none."""

    columns: Sequence[ColumnState]
    followed: int
    scale: NDArray[np.float32] | None

    def finish(self, column: int, records: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows float32[n, dim] of records int64[n, 1 + dim]."""
        state = self.columns[column]
        values = np.empty((len(records), records.shape[1] - 1), dtype=np.float32)
        fill_kernels.finish(records, state.mean(self.followed), state.scale, values)
        return values


def load_records(records: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the records [n, 1 + dim] of `rows` [n]."""
    found = np.empty((len(rows), records.shape[1]), dtype=np.int64)
    kernels.load_lines(records, 0, rows, found)
    return found


_Bucket: TypeAlias = tuple[
    int,
    int,
    NDArray[np.int64],
    Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]],
]


@dataclass(slots=True, kw_only=True, eq=False)
class LayerUpdate:
    """The update of one layer. `records` int64[rows, 1 + dim] are its kept sums, mapped.

    `pairs`: what is added and what is removed, uint64[2 * n] each, by order; a token is its place
    in `tokens` int64[n], ascending. `vectors(column)`: theirs, int16[n, W]. `before`, `after`:
    what rows are made with. `keep`: what `check` made of the pairs is kept for `apply`.
    """

    entry: LayerHash
    layout: HashLayout
    plan: LayerPlan
    vectors: Callable[[int], NDArray[np.int16]]
    records: NDArray[np.int64]
    rows: LayerRows
    pairs: Mapping[int, tuple[NDArray[np.uint64], NDArray[np.uint64]]]
    before: SideState
    after: SideState
    keep: bool = False
    pool: BufferPool = field(default_factory=BufferPool)
    _dealt: dict[int, tuple[NDArray[np.int16], ColumnPart, ColumnPart]] = field(
        default_factory=dict
    )

    def check(self, block: Block, *, every: bool, wanted: bool) -> tuple[int, list[Changed]]:
        """Compare the records of the rows that documents touch with the rows that are stored.

        Return how many rows are touched. If `wanted`, also what they become; with `every`, what all
        rows of the block become. Raises ArtifactError for records that do not make their rows, or
        that the documents to remove cannot have made.
        """
        count, found = 0, []
        largest = self.before.columns[block.column].largest
        for _, first, touched, change in self._buckets(block):
            count += len(touched)
            old = load_records(self.records, first + touched)
            values = self.before.finish(block.column, old)
            stored = self.rows.read(first + touched)
            made = self.rows.encode(values, self.before.scale)
            for there, own in zip(stored, made, strict=True):
                wrong = np.flatnonzero((there != own).any(axis=1))
                if len(wrong):
                    row = first + int(touched[wrong[0]])
                    raise ArtifactError(
                        f"{self.rows.path}: the sums kept of row {row:,} of layer "
                        f"{self.entry.layer} do not make the row that is stored",
                        _REFILL,
                    )
            new = change(old, touched)
            bad = int(kernels.first_impossible(new, largest))
            if bad >= 0:
                raise ArtifactError(
                    f"{self.rows.path}: row {first + int(touched[bad]):,} of layer "
                    f"{self.entry.layer} would have a count of {int(new[bad, 0]):,}: these "
                    "documents were not added to it",
                    "remove documents that filled the table, read with the same options",
                )
            if wanted and every:
                height = min(1 << block.shift, block.end - (first - self._offset(block)))
                touched = np.arange(height, dtype=np.int64)
                new = change(load_records(self.records, first + touched), touched)
            if wanted:
                found.append(self._changed(block.column, first + touched, new))
        return count, found

    def apply(self, block: Block, journal: UpdateJournal, slot: Slot, *, every: bool) -> None:
        """Change the records of a block, and its rows unless `every` row is written afterwards."""
        for number, first, touched, change in self._buckets(block, journal):
            if len(touched):
                records = change(load_records(self.records, first + touched), touched)
                slot.write(number, first + touched, records)
                self.put(block.column, first + touched, records, rows_too=not every)
            journal.note(number)

    def put(
        self,
        column: int,
        rows: NDArray[np.int64],
        records: NDArray[np.int64],
        *,
        rows_too: bool = True,
    ) -> None:
        """Write records to their places, and the rows that they make."""
        kernels.store_lines(self.records, 0, rows, records)
        if rows_too:
            self.rows.write(rows, self._changed(column, rows, records).lines)

    def write_rows(self, column: int) -> None:
        """Write all rows of a column again, from its records."""
        offset, modulus = self.entry.offsets[column], self.entry.moduli[column]
        step = max(1, _PIECE_BYTES // (4 * self.rows.dim))
        for begin in range(offset, offset + modulus, step):
            rows = np.arange(begin, min(begin + step, offset + modulus), dtype=np.int64)
            records = self.records[begin : begin + len(rows)]
            self.rows.write(rows, self._changed(column, rows, records).lines)

    def _changed(self, column: int, rows: NDArray[np.int64], records: NDArray[np.int64]) -> Changed:
        values = self.after.finish(column, records)
        lines = self.rows.encode(values, self.after.scale)
        return Changed(rows=rows, records=records, lines=lines)

    def _offset(self, block: Block) -> int:
        return self.entry.offsets[block.column]

    def _buckets(self, block: Block, journal: UpdateJournal | None = None) -> Iterator[_Bucket]:
        """Yield each bucket: its number, its first row in the layer, the touched rows in it, and
        what adds the documents to their records. Those that `journal` lists are left out."""
        left = [
            bucket
            for bucket in range(block.buckets)
            if journal is None or not journal.done(block.number + bucket)
        ]
        if not left:
            return
        known = block.number in self._dealt
        dealt = self._dealt.pop(block.number) if known else self._deal(block)
        vectors, added, removed = dealt
        for bucket in left:
            yield self._bucket(block, bucket, vectors, added, removed)
        if journal is None and self.keep:
            self._dealt[block.number] = dealt
        else:
            for part in (added, removed):
                self.pool.give(part.release())

    def _deal(self, block: Block) -> tuple[NDArray[np.int16], ColumnPart, ColumnPart]:
        """Return the vectors of a column, and the entries of a block by row: those that are added
        and those that are removed."""
        column = block.column
        scale = self.before.columns[column].scale
        vectors = self.vectors(column)
        own = ColumnVectors(
            values=vectors, scale=scale, mean=np.zeros(0), total=np.zeros(0, dtype=np.int64)
        )
        added, removed = (
            deal_out([pairs], self.plan, {column: (block.begin, block.end)}, {column: own},
                     self.pool.take)[column]
            for pairs in self.pairs[self.layout.orders[column // self.layout.heads]]
        )  # fmt: skip
        return vectors, added, removed

    def _bucket(
        self,
        block: Block,
        bucket: int,
        vectors: NDArray[np.int16],
        added: ColumnPart,
        removed: ColumnPart,
    ) -> _Bucket:
        plus, minus = added.by_row(bucket), removed.by_row(bucket)
        begin = bucket << block.shift
        rows = np.empty(min(1 << block.shift, block.end - block.begin - begin), dtype=np.int64)
        rows = rows[: kernels.touched(plus[1], minus[1], rows)].copy()

        def change(records: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
            fill_kernels.add_rows(*plus, rows, vectors, 1, records)
            fill_kernels.add_rows(*minus, rows, vectors, -1, records)
            return records

        first = self._offset(block) + block.begin + begin
        return block.number + bucket, first, rows, change
