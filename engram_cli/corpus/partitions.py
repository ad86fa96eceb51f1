"""Divides a corpus into partitions, which depend on its files and their sizes alone.

A partition is whole files, about `size` bytes of them, or a section of one large file. What the
order of reading decides (look-back between joined documents, caches) restarts with
each, so that counting them in any order and grouping gives the same result.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Section
from engram_cli.corpus.readers import READERS
from engram_cli.errors import InputError

# A few seconds to a minute of work: 64 M tokens of text, whose look-ups warm any cache.
PARTITION_BYTES = 2**28
LEAST_BYTES = 2**10
_LOOKERS = 16  # files opened at a time: for remote ones that is waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The files of a corpus in order, large ones as their sections; `begins`: the indices of the
    files that begin a partition, the first of them 0."""

    files: tuple[CorpusFile, ...]
    begins: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def size(self) -> int | None:
        """Return the bytes of all files; None when one of them is a pipe."""
        return total_size(self.files)

    def partition(self, file: int) -> int:
        """Return the number of the partition of a file, by its index."""
        return bisect_right(self.begins, file) - 1

    def part(self, begin: int, end: int) -> Plan:
        """Return the partitions begin..end-1 as a plan of their own."""
        first = self.begins[begin]
        last = self.begins[end] if end < len(self) else len(self.files)
        return Plan(
            files=self.files[first:last],
            begins=tuple(at - first for at in self.begins[begin:end]),
        )


def plan_partitions(
    files: Sequence[CorpusFile], options: CorpusOptions, size: int = PARTITION_BYTES
) -> Plan:
    """Check every file and divide the corpus into partitions of about `size` bytes.

    Files follow each other into a partition while it does not grow beyond `size`. A larger file is
    divided where its format has an index of row groups, batches, shards or documents; else, and
    where its size is unknown, it is a partition by itself. Raises CorpusError for a file that
    says of itself that it cannot be read, InputError for a size that cannot be.
    """
    check_partition_size(size)

    def divided(file: CorpusFile) -> Sequence[CorpusFile]:
        reader = READERS.load(file.format)
        reader.check(file, options)
        large = file.size is not None and file.size > size
        return reader.divide(file, options, size) if large or reader.lists else (file,)

    with ThreadPoolExecutor(_LOOKERS) as pool:
        found = list(pool.map(divided, files))
    listed: list[CorpusFile] = []
    begins: list[int] = []
    room = -1  # bytes that the partition at hand may yet take; -1: nothing more
    for file in (part for parts in found for part in parts):
        alone = file.section is not None or file.size is None
        taken = file.size or 0
        if alone or taken > room:
            begins.append(len(listed))
            room = size
        listed.append(file)
        room = -1 if alone else max(room - taken, -1)
    return Plan(files=tuple(listed), begins=tuple(begins))


def check_partition_size(size: int) -> None:
    """Raise InputError for a size of partitions that cannot be."""
    if size < LEAST_BYTES:
        raise InputError(
            f"--partition-size {size} is too small", f"give --partition-size {LEAST_BYTES} or more"
        )


def total_size(files: Sequence[CorpusFile]) -> int | None:
    """Return the bytes of all files; None when the size of one is unknown."""
    sizes = [file.size for file in files]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def by_weight(file: CorpusFile, weights: Sequence[int], size: int) -> list[CorpusFile]:
    """Return sections of whole units, such as row groups, each of `size` bytes or just beyond.

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
    """Return sections of whole units, such as documents, whose places in the file ascend.

    `place` gives the byte where a unit begins; a bound is the first unit at or after each multiple
    of `size`. Only a few units are looked up.
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
    """Return the sections between `bounds` in units, at `places` in bytes; the file itself for
    one."""
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
