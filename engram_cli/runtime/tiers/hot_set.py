"""The hot rows of layers: chosen by their hits, and stored as a bitmap with a rank directory.

`hottest` chooses the most hit rows of several layers in two passes over the hits, which may be a
memory map of gigabytes: it counts how many rows have each number of hits, then takes the rows above
the threshold. Nothing is sorted, and no array as long as all rows is made. `HotSet` maps a row
number to its rank, which is its index among the hot records. It takes 1.25 bits a row: one bit, and
a directory entry for each 128 rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import InputError

BLOCK_ROWS = 128  # rows that share an entry of the directory
_PIECE_ROWS = 2**26  # rows handled at once: a byte a row while the bits are made


@dataclass(frozen=True, slots=True, kw_only=True)
class HotSet:
    """Says which of `rows` rows are hot: r is if bit r % 32 of `words` int32 r // 32 is set.

    `ranks` int32, one for 128 rows: how many hot rows come before these. `count`: hot rows.
    """

    rows: int
    count: int
    words: Tensor
    ranks: Tensor

    @property
    def nbytes(self) -> int:
        """Return the bytes of bitmap and directory."""
        return self.words.nbytes + self.ranks.nbytes

    def rank(self, rows: Tensor) -> Tensor:
        """Return the rank of each of `rows` among the hot rows, int64, -1 where it is not hot."""
        flat = rows.reshape(-1)
        word = self.words.index_select(0, flat >> 5).long()
        below = word & ((1 << (flat & 31)) - 1)
        found = self.ranks.index_select(0, flat >> 7).long() + _count_bits(below)
        for earlier in range(3):
            other = self.words.index_select(0, (flat >> 7 << 2) + earlier).long()
            found += torch.where(earlier < (flat >> 5 & 3), _count_bits(other), 0)
        is_hot = (word >> (flat & 31) & 1) != 0
        return torch.where(is_hot, found, -1).view(rows.shape)


def hot_set(hot_rows: NDArray[np.int64], rows: int, device: torch.device | str = "cpu") -> HotSet:
    """Make the set of `hot_rows` int64, ascending, below `rows`. Raises InputError for others."""
    hot = np.ascontiguousarray(hot_rows, dtype=np.int64)
    if len(hot) and (hot[0] < 0 or hot[-1] >= rows or np.any(hot[1:] <= hot[:-1])):
        raise InputError(
            f"hot rows are not ascending row numbers below {rows}", "sort them, each once"
        )
    blocks = -(-rows // BLOCK_ROWS)
    bits = np.zeros(blocks * BLOCK_ROWS // 8, dtype=np.uint8)
    for begin in range(0, rows, _PIECE_ROWS):
        own = hot[slice(*np.searchsorted(hot, [begin, begin + _PIECE_ROWS]))]
        marks = np.zeros(min(_PIECE_ROWS, blocks * BLOCK_ROWS - begin), dtype=np.bool_)
        marks[own - begin] = True
        bits[begin // 8 : (begin + len(marks)) // 8] = np.packbits(marks, bitorder="little")
    starts = np.arange(blocks, dtype=np.int64) * BLOCK_ROWS
    ranks = np.searchsorted(hot, starts).astype(np.int32)
    return HotSet(
        rows=rows,
        count=len(hot),
        words=torch.from_numpy(bits.view("<i4")).to(device),
        ranks=torch.from_numpy(ranks).to(device),
    )


def hot_set_bytes(rows: int) -> int:
    """Return the bytes that the set takes on the device for a layer of `rows` rows."""
    return -(-rows // BLOCK_ROWS) * (BLOCK_ROWS // 8 + 4)


def _count_bits(word: Tensor) -> Tensor:
    """Return how many of the lower 32 bits of `word` int64 are set."""
    word = word & 0xFFFFFFFF
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101 >> 24) & 0xFF


_HITS_PIECE_ROWS = 2**22
_MOST = 2**32 - 1
_COUNTED = 2**16  # hits below this are counted exactly; few rows have more

Hits = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hottest:
    """Row numbers int64 by layer, ascending. `caught`: their share of hits, None without."""

    rows: Mapping[int, NDArray[np.int64]]
    caught: float | None


def hottest(hits: Mapping[int, Hits], count: int) -> Hottest:
    """Choose the `count` most hit rows of all layers, fewer where fewer rows have a hit.

    Of rows with equal hits the lower row number comes first, then the earlier layer.
    """
    threshold, of_equals = _threshold(hits, count)
    found = {layer: [np.empty(0, dtype=np.int64)] for layer in hits}
    caught = total = 0
    for begin in range(0, max(map(len, hits.values()), default=0), _HITS_PIECE_ROWS):
        pieces = {layer: own[begin : begin + _HITS_PIECE_ROWS] for layer, own in hits.items()}
        equals = _first_equals(pieces, threshold, of_equals)
        of_equals -= sum(map(len, equals.values()))
        for layer, piece in pieces.items():
            mine = np.sort(np.concatenate([np.flatnonzero(piece > threshold), equals[layer]]))
            total += int(piece.sum(dtype=np.int64))
            caught += int(piece[mine].sum(dtype=np.int64))
            found[layer].append(mine + begin)
    return Hottest(
        rows={layer: np.concatenate(own) for layer, own in found.items()},
        caught=caught / total if total else None,
    )


def _threshold(hits: Mapping[int, Hits], count: int) -> tuple[int, int]:
    """Return (t, n): rows with more than t hits are hot, and n of those with exactly t."""
    if count <= 0:
        return _MOST, 0
    bins = np.zeros(_COUNTED + 1, dtype=np.int64)
    high: list[Hits] = []
    for piece in _pieces(hits):
        high.append(piece[piece >= _COUNTED])
        bins += np.bincount(np.minimum(piece, _COUNTED), minlength=_COUNTED + 1)
    many = np.concatenate([np.empty(0, dtype=np.uint32), *high])
    if len(many) >= count:
        threshold = int(np.partition(many, len(many) - count)[len(many) - count])
        return threshold, count - int(np.count_nonzero(many > threshold))
    above = np.cumsum(bins[::-1])[::-1]  # rows with at least so many hits
    if above[1] <= count:
        return 0, 0
    # The threshold is the largest number of hits that at least `count` rows have.
    threshold = int(np.flatnonzero(above >= count)[-1])
    return threshold, count - int(above[threshold + 1])


def _first_equals(
    pieces: Mapping[int, Hits], threshold: int, wanted: int
) -> dict[int, NDArray[np.int64]]:
    """Return the first `wanted` rows with exactly `threshold` hits, by row number, then layer."""
    nothing = np.empty(0, dtype=np.int64)
    if wanted <= 0:
        return dict.fromkeys(pieces, nothing)
    equal = {layer: np.flatnonzero(piece == threshold) for layer, piece in pieces.items()}
    if sum(map(len, equal.values())) <= wanted:
        return equal
    rows = np.concatenate(list(equal.values()))
    places = np.repeat(np.arange(len(equal)), [len(own) for own in equal.values()])
    first = np.lexsort((places, rows))[:wanted]
    return {
        layer: np.sort(rows[first[places[first] == place]]) for place, layer in enumerate(equal)
    }


def _pieces(hits: Mapping[int, Hits]) -> Iterator[Hits]:
    for own in hits.values():
        for begin in range(0, len(own), _HITS_PIECE_ROWS):
            yield own[begin : begin + _HITS_PIECE_ROWS]
