"""Which rows are hot, and where each lies among the hot ones: a bit a row and a rank directory.

In: the row numbers of the hot rows. Out: for any row number its rank, which is its place in the
array of hot records. Four words of 32 bits share one entry of the directory: 1.25 bits a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_cli.errors import InputError

BLOCK_ROWS = 128  # that share an entry of the directory
WORD_BITS = 32
_PIECE_ROWS = 2**26  # marked at once: a byte a row while the bits are made


@dataclass(frozen=True, slots=True, kw_only=True)
class HotSet:
    """The hot ones of `rows` rows. `words` int32: bit r % 32 of word r // 32 says that r is hot.

    `ranks` int32, one for 128 rows: how many hot rows come before these. `count`: hot rows.
    """

    rows: int
    count: int
    words: Tensor
    ranks: Tensor

    @property
    def nbytes(self) -> int:
        """The bytes of bits and directory."""
        return self.words.nbytes + self.ranks.nbytes

    def rank(self, rows: Tensor) -> Tensor:
        """int64 like `rows`: the place of each among the hot rows, -1 where it is not hot."""
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
    """The set of `hot_rows` int64, ascending, among `rows` rows. Raises InputError for others."""
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
    """What the set takes on the device for a layer of `rows` rows."""
    return -(-rows // BLOCK_ROWS) * (BLOCK_ROWS // 8 + 4)


def _count_bits(word: Tensor) -> Tensor:
    """int64: the bits of the lower 32 of `word` int64 that are set."""
    word = word & 0xFFFFFFFF
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101 >> 24) & 0xFF
