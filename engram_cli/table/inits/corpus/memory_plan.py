"""What is held in memory together while rows are filled from a corpus: ranges of rows, columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from engram_cli.hashing.layout import LayerHash
from engram_cli.table.inits.base import Span
from engram_cli.table.inits.corpus.pairs import TokenPairs

_ENTRY = 8  # bytes of a pair in a bucket
_TOGETHER = 2  # columns dealt out together: reading pairs for one alone took 3 ns each of 12


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Divides rows so that their entries, and the vectors of their columns, fit into `memory`.

    `vector_bytes`: of the vectors of a column. `threads` deal columns out.
    """

    pairs: TokenPairs
    vector_bytes: int
    memory: int
    threads: int

    def passes(self, entry: LayerHash, spans: Sequence[Span]) -> list[list[int]]:
        """Return which of `spans` are made together, as indices: as many as memory allows."""
        room = self.memory - fixed_bytes(self.memory)
        groups: list[list[int]] = []
        used, held = 0, set[int]()
        for index, span in enumerate(spans):
            parts = list(columns_of(entry, span))
            need = sum(self.entry_bytes(entry, *part) for part in parts)
            new = {column for column, _ in parts} - held
            cost = need + len(new) * self.vector_bytes
            if not groups or used + cost > room:
                groups.append([])
                used, held = 0, set()
                cost = need + len(parts) * self.vector_bytes
            groups[-1].append(index)
            used += cost
            held |= {column for column, _ in parts}
        return groups

    def groups(self, entry: LayerHash, parts: Mapping[int, Span]) -> list[dict[int, Span]]:
        """Return the columns that all threads deal out together, since their reader would wait.

        Where memory does not allow two, that is one column, or some of its rows after another:
        then a chunk of rows takes more than a pass over the pairs.
        """
        groups: list[dict[int, Span]] = []
        room = max(self.memory - fixed_bytes(self.memory), 1)
        heads = self.pairs.layout.heads
        for _, own in groupby(sorted(parts), lambda column: column // heads):
            columns, size = list(own), max(_TOGETHER, self.threads)
            need = max(self.entry_bytes(entry, c, parts[c]) for c in columns) + self.vector_bytes
            size = max(min(size, room // need), 1)
            if need <= room:
                groups += cut_columns(parts, columns, size)
            else:
                groups += [{c: span} for c in columns for span in self._cut(entry, c, parts[c])]
        return groups

    def _cut(self, entry: LayerHash, column: int, span: Span) -> Iterator[Span]:
        """Yield the rows of a column in ranges that fit into memory."""
        room = self.memory - fixed_bytes(self.memory) - self.vector_bytes
        count = -(-self.entry_bytes(entry, column, span) // max(room, self.memory // 8, 1))
        step = max(-(-(span[1] - span[0]) // count), 1)
        for begin in range(*span, step):
            yield begin, min(begin + step, span[1])

    def entry_bytes(self, entry: LayerHash, column: int, span: Span) -> int:
        """Return the bytes that the entries of rows begin..end-1 of a column take."""
        order = self.pairs.layout.orders[column // self.pairs.layout.heads]
        share = (span[1] - span[0]) / entry.moduli[column]
        return int(self.pairs.most_pairs(order) * share * _ENTRY)


def fixed_bytes(memory: int) -> int:
    """Return the part of memory for blocks of pairs, and for a chunk on its way for each thread."""
    return memory // 4


def cut_columns(spans: Mapping[int, Span], columns: list[int], size: int) -> list[dict[int, Span]]:
    """Return the spans of `columns`, `size` columns at a time."""
    cuts = (columns[at : at + size] for at in range(0, len(columns), size))
    return [{column: spans[column] for column in cut} for cut in cuts]


def columns_of(entry: LayerHash, span: Span) -> Iterator[tuple[int, Span]]:
    """Yield (column, its rows begin..end) of a span (first row, count) of the layer."""
    first, count = span
    for column, (offset, modulus) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
        begin, end = max(first - offset, 0), min(first + count - offset, modulus)
        if begin < end:
            yield column, (begin, end)
