"""The most hit rows of several layers, chosen together: hits in, ascending row numbers out.

Two passes over hits that may be a map of gigabytes: how many rows have each number of hits, then
the rows above the threshold. No array is sorted, none of all rows is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PIECE_ROWS = 2**22
_MOST = 2**32 - 1
_COUNTED = 2**16  # numbers of hits up to here are counted one by one, those above are few

Hits = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hottest:
    """Row numbers int64 by layer, ascending; `caught`: their share of all hits, None of none."""

    rows: Mapping[int, NDArray[np.int64]]
    caught: float | None


def hottest(hits: Mapping[int, Hits], count: int) -> Hottest:
    """The `count` most hit rows of all layers; of equals the lower row number, the earlier layer.

    Fewer where fewer have a hit.
    """
    threshold, of_equals = _threshold(hits, count)
    found = {layer: [np.empty(0, dtype=np.int64)] for layer in hits}
    caught = total = 0
    for begin in range(0, max(map(len, hits.values()), default=0), _PIECE_ROWS):
        pieces = {layer: own[begin : begin + _PIECE_ROWS] for layer, own in hits.items()}
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
    """(t, n): rows of more than t hits are in, and n of those of exactly t."""
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
    above = np.cumsum(bins[::-1])[::-1]  # how many rows have so many hits or more
    if above[1] <= count:
        return 0, 0
    # The last number of hits that at least `count` rows reach is where equals begin.
    threshold = int(np.flatnonzero(above >= count)[-1])
    return threshold, count - int(above[threshold + 1])


def _first_equals(
    pieces: Mapping[int, Hits], threshold: int, wanted: int
) -> dict[int, NDArray[np.int64]]:
    """The first `wanted` rows of exactly `threshold` hits, by row number, then by layer."""
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
        for begin in range(0, len(own), _PIECE_ROWS):
            yield own[begin : begin + _PIECE_ROWS]
