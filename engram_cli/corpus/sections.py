"""Large files in sections: a file and what it is made of in, sections of about equal size out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from engram_cli.corpus.base import CorpusFile, Section


def by_weight(file: CorpusFile, weights: Sequence[int], size: int) -> list[CorpusFile]:
    """Sections of whole units, such as row groups, each of `size` bytes or just beyond.

    `weights`: what each unit is worth, in any measure; together they are worth the file.
    """
    total = sum(weights)
    bounds, done = [0], 0
    for unit, weight in enumerate(weights, 1):
        done += weight
        whole = done * (file.size or 0) >= size * len(bounds) * total
        if unit == len(weights) or (whole and total):
            bounds.append(unit)
    done_at = [0]
    for begin, end in pairwise(bounds):
        done_at.append(done_at[-1] + sum(weights[begin:end]))
    places = [(file.size or 0) * done // max(total, 1) for done in done_at]
    return sections(file, bounds, places)


def by_search(
    file: CorpusFile, units: int, place: Callable[[int], int], size: int
) -> list[CorpusFile]:
    """Sections of whole units, such as documents, whose places in the file ascend.

    `place` gives the byte where a unit begins; a bound is the first unit at or after each multiple
    of `size`. Only a few units are looked at.
    """
    bounds, places = [0], [0]
    for target in range(size, file.size or 0, size):
        low, high = bounds[-1], units
        while low < high:
            middle = (low + high) // 2
            if place(middle) < target:
                low = middle + 1
            else:
                high = middle
        if bounds[-1] < low < units:
            bounds.append(low)
            places.append(place(low))
    return sections(file, [*bounds, units], [*places, file.size or 0])


def sections(file: CorpusFile, bounds: Sequence[int], places: Sequence[int]) -> list[CorpusFile]:
    """The sections between `bounds` in units, at `places` in bytes; the file itself for one."""
    if len(bounds) < 3:
        return [file]
    return [
        replace(
            file,
            size=max(places[number + 1] - places[number], 0),
            section=Section(number=number, begin=bounds[number], end=bounds[number + 1]),
        )
        for number in range(len(bounds) - 1)
    ]
