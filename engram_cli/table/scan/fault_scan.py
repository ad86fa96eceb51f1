"""Reads the rows of a source, all of them or a sample, and looks for faults and repeated blocks.

A sample has a row from each of as many equal parts of a layer as it has rows, so that it finds a
fault in a share of the rows wherever these lie. Memory does not grow with the table.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS, SCALES, RowSource, Span
from engram_cli.table.scan.faults import Measured, RowFaults, digest, measure, scale_range

CONFIDENCE = 0.999  # with which a sample finds a fault in the share of rows it is made for
BLOCK_BYTES = 2**20
_MOST_BLOCKS = 2**17  # larger blocks where there would be more
_BLOCKS_READ, _BLOCKS_A_TASK = 4, 32  # at a time, and by one thread one after another
_LEAST_BLOCK = 1024  # bytes, of a block that is compared with others
_PIECE_BYTES = 2**20  # of a sample, read at a time
_SEED = 0x656E6772616D
_LEAST_HOLE = 512  # bytes
_NEAR, _MOST_NEAR = 64, 64  # rows read around a zero row of a sample, and around how many
_WINDOWS, _WINDOW_ROWS, _MOST_WINDOWS = 4, 16, 2048  # of each shard, rows of each, of all shards
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFaults:
    """What was found in `read` of the `rows` rows of a layer.

    `hole`: first row and number of rows of a stretch of zeros that is no chance; None without one.
    """

    layer: int
    rows: int
    read: int
    found: RowFaults
    hole: tuple[int, int] | None

    @property
    def whole(self) -> bool:
        """Whether every row was read."""
        return self.read == self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """Equal rows: `rows` of them from row `first` of `layer` on are there `again` (layer, row)."""

    layer: int
    first: int
    again: tuple[int, int]
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultScan:
    """What was found in the layers of a source; `share` is that of the sample, None for all rows.

    `compared`: blocks or shards that were compared with each other; below 2 nothing was. `repeats`:
    stretches that are there twice, the longest first. `read_bytes`: of rows and scales.
    """

    layers: tuple[LayerFaults, ...]
    share: float | None
    compared: int
    repeats: tuple[Repeat, ...]
    read_bytes: int


def sample_size(share: float) -> int:
    """Return how many rows find a fault in `share` of all rows with `CONFIDENCE`."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - share))


def scan_faults(
    source: RowSource, share: float | None, *, threads: int = 1, progress: Progress = SILENT
) -> FaultScan:
    """Read the rows of every layer: all, or a sample that finds faults in `share` of them.

    Raises ArtifactError for files that cannot be read.
    """
    assert source.dtype is not None
    assert source.dim is not None
    row_bytes = DTYPES.load(source.dtype).row_bytes(source.dim)
    heights = {layer: rows_there(source, layer) for layer in source.layers}
    size = None if share is None else sample_size(share)
    taken = {n: rows if size is None else min(rows, size) for n, rows in heights.items()}
    progress.start("verify", sum(taken.values()) * row_bytes, "bytes")
    blocks = _Blocks(source, row_bytes * sum(heights.values()))
    layers = []
    for layer, rows in heights.items():
        if taken[layer] == rows:
            layers.append(_read_all(source, layer, rows, blocks, threads, progress))
        else:
            layers.append(_read_sample(source, layer, rows, taken[layer], progress))
    whole = all(each.whole for each in layers)
    repeats, compared = _equal_shards(source)
    if whole:  # shards of other heights end within a block
        found, compared = blocks.repeats()
        repeats = found or repeats
    return FaultScan(
        layers=tuple(layers),
        share=None if whole else share,
        compared=compared,
        repeats=repeats,
        read_bytes=sum(taken.values()) * row_bytes,
    )


def _started(source: RowSource, layer: int) -> RowFaults:
    """Return nothing found yet, but for the one scale of a layer."""
    row_type = DTYPES.load(source.dtype or "")
    found = RowFaults(row_type=row_type, dim=source.dim or 0)
    if row_type.of_layer:
        scales = row_type.widen(source.lines(layer, SCALES, 0, 1))
        found.scales.merge(scale_range(scales.reshape(-1)))
    return found


def _stored(
    source: RowSource, layer: int, first: int, count: int
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    return source.lines(layer, ROWS, first, count), _own_scales(source, layer, first, count)


def _own_scales(source: RowSource, layer: int, first: int, count: int) -> NDArray[Any] | None:
    row_type = DTYPES.load(source.dtype or "")
    if row_type.scaling is None or row_type.of_layer:
        return None
    return source.lines(layer, SCALES, first, count)


def _read_all(
    source: RowSource, layer: int, rows: int, blocks: _Blocks, threads: int, progress: Progress
) -> LayerFaults:
    """Read a layer block by block on threads; add the blocks' digests to `blocks`."""
    used, found = sum(source.layout.layer(layer).moduli), _started(source, layer)

    def work(piece: tuple[int, int]) -> list[tuple[int, Measured, list[int]]]:
        return list(_measured(source, layer, found, blocks.step, *piece))

    row_bytes = found.row_type.row_bytes(found.dim)
    for (begin, size), parts in _in_order(threads, work, blocks.pieces(layer)):
        for first, measured, values in parts:
            found.take(first, None, measured, used)
            for place, value in enumerate(values):
                at = first + place * blocks.step
                blocks.add(layer, at, min(blocks.step, begin + size - at), value)
        progress.advance(size * row_bytes)
    runs = found.zero
    is_hole = runs.is_hole() and runs.longest * row_bytes >= _LEAST_HOLE
    hole = (runs.longest_at, runs.longest) if is_hole else None
    return LayerFaults(layer=layer, rows=rows, read=rows, found=found, hole=hole)


def _measured(
    source: RowSource, layer: int, found: RowFaults, step: int, first: int, count: int
) -> Iterator[tuple[int, Measured, list[int]]]:
    """Yield (first row, what was measured, the digest of each block) for a few blocks at a time."""
    end, all_scales = first + count, _own_scales(source, layer, first, count)
    for begin in range(first, end, _BLOCKS_READ * step):
        own = min(_BLOCKS_READ * step, end - begin)
        rows, scales = source.lines(layer, ROWS, begin, own), None
        if all_scales is not None:  # read at once: they are small
            scales = all_scales[begin - first : begin - first + own]
        measured = measure(found.row_type, found.dim, rows, scales)
        values, some_zero = [], bool(measured.zero.any())
        for at in range(0, own, step):
            block = slice(at, at + step)
            is_zero = some_zero and measured.zero[block].all()
            own_scales = None if scales is None else scales[block]
            values.append(0 if is_zero else digest(rows[block], own_scales))
        yield begin, measured, values


def _in_order(threads: int, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield each task with its result, in order; few of them wait at a time."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        for task in tasks:
            waiting.append((task, pool.submit(work, task)))
            if len(waiting) > 4 * threads:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _read_sample(
    source: RowSource, layer: int, rows: int, size: int, progress: Progress
) -> LayerFaults:
    """Read a row of each of `size` equal parts of a layer, always the same ones."""
    used, found = sum(source.layout.layer(layer).moduli), _started(source, layer)
    ids = _sampled(rows, size, layer)
    before = int(np.searchsorted(ids, used))
    row_bytes = found.row_type.row_bytes(found.dim)
    step, zero = max(1, _PIECE_BYTES // row_bytes), []
    for begin in range(0, size, step):
        own = ids[begin : begin + step]
        measured = measure(found.row_type, found.dim, *source.stored(layer, own))
        found.take(begin, own, measured, before)
        zero.append(own[measured.zero & (own < used)])
        progress.advance(len(own) * row_bytes)
    runs = found.zero
    hole = None
    if runs.is_hole():  # a long one, that has many rows of the sample
        first, last = ids[runs.longest_at], ids[runs.longest_at + runs.longest - 1]
        hole = int(first), int(last - first) + 1
    elif runs.zero:
        hole = _hole_near(source, found, layer, np.concatenate(zero))
    return LayerFaults(layer=layer, rows=rows, read=size, found=found, hole=hole)


def _sampled(rows: int, size: int, layer: int) -> NDArray[np.int64]:
    """Return a row of each of `size` equal parts of `rows` rows, ascending."""
    edges = np.arange(size + 1, dtype=np.int64) * rows // size
    random = np.random.default_rng([_SEED, layer])
    return random.integers(edges[:-1], edges[1:])


def _hole_near(
    source: RowSource, found: RowFaults, layer: int, zero: NDArray[np.int64]
) -> tuple[int, int] | None:
    """Return the longest stretch of zeros around sampled zero rows, if chance makes none."""
    used = sum(source.layout.layer(layer).moduli)
    best, at = 0, 0
    for row in zero[:: -(-len(zero) // _MOST_NEAR)].tolist():
        first = max(0, row - _NEAR)
        rows, scales = _stored(source, layer, first, min(row + _NEAR, used) - first)
        others = np.flatnonzero(~measure(found.row_type, found.dim, rows, scales).zero)
        place = int(np.searchsorted(others, row - first))
        low = int(others[place - 1]) + 1 if place else 0
        high = int(others[place]) if place < len(others) else len(rows)
        if high - low > best:
            best, at = high - low, first + low
    big = best * found.row_type.row_bytes(found.dim) >= _LEAST_HOLE
    return (at, best) if big and found.zero.is_hole(best) else None


class _Blocks:
    """The digests of all blocks of a source, and where each begins. Zero blocks are not compared.

    Blocks begin where shards do, so that those of a shard that is there twice are equal. Digests
    are of some rows of a block: equal ones are compared in full.
    """

    def __init__(self, source: RowSource, size: int) -> None:
        self.source = source
        self.row_bytes = DTYPES.load(source.dtype or "").row_bytes(source.dim or 0)
        block = BLOCK_BYTES
        while size // block > _MOST_BLOCKS:
            block *= 2
        self.step = max(1, block // self.row_bytes)
        self._entries: list[tuple[int, int, int, int]] = []

    def pieces(self, layer: int) -> Iterator[tuple[int, int]]:
        """Yield (first row, rows) of pieces of a layer, each some blocks of one shard."""
        step = self.step * _BLOCKS_A_TASK
        for span in source_spans(self.source, layer):
            end = span.first + span.rows
            for first in range(span.first, end, step):
                yield first, min(step, end - first)

    def add(self, layer: int, first: int, count: int, value: int) -> None:
        """Take a block's digest; 0 for one of zeros."""
        if value and count * self.row_bytes >= _LEAST_BLOCK:
            self._entries.append((value, layer, first, count))

    def repeats(self) -> tuple[tuple[Repeat, ...], int]:
        """Return the stretches of blocks that are there twice, and how many blocks there were."""
        seen: dict[int, tuple[int, int]] = {}
        chains: list[list[int]] = []  # layer, first, layer and row of the same before, rows
        for value, layer, first, count in self._entries:
            before = seen.setdefault(value, (layer, first))
            if before == (layer, first):
                continue
            last = chains[-1] if chains else [0, 0, 0, 0, 0]
            if [last[0], last[1] + last[4], last[2], last[3] + last[4]] == [layer, first, *before]:
                last[4] += count
            else:
                chains.append([layer, first, *before, count])
        found = [
            Repeat(layer=chain[2], first=chain[3], again=(chain[0], chain[1]), rows=chain[4])
            for chain in chains
        ]
        found = sorted(found, key=lambda each: -each.rows)
        return tuple(each for each in found if self._equal(each)), len(self._entries)

    def _equal(self, repeat: Repeat) -> bool:
        """Compare the first block of a stretch itself: digests may be equal by chance."""
        count = min(repeat.rows, self.step)
        one = _stored(self.source, repeat.layer, repeat.first, count)
        two = _stored(self.source, *repeat.again, count)
        return all(
            a is None or np.array_equal(np.asarray(a), np.asarray(b))
            for a, b in zip(one, two, strict=True)
        )


def source_spans(source: RowSource, layer: int) -> tuple[Span, ...]:
    """Return the spans of a layer's rows; one of the whole layer where they are in no file."""
    whole = Span(file=source.path, begin=0, first=0, rows=source.layout.layer(layer).rows)
    return source.spans(layer) or (whole,)


def rows_there(source: RowSource, layer: int) -> int:
    """Return how many rows of a layer can be read: fewer than its layout has if a shard lacks."""
    last = source_spans(source, layer)[-1]
    return min(last.first + last.rows, source.layout.layer(layer).rows)


def padded_shards(source: RowSource, layer: int) -> tuple[int, tuple[int, ...]]:
    """Return how many rows pad a layer, and the shards whose last so many rows are all zero.

    The padding is at the end of the last shard; 0 rows where there is one shard or no padding.
    """
    entry, spans = source.layout.layer(layer), source_spans(source, layer)
    padding = entry.rows - sum(entry.moduli)
    whole = rows_there(source, layer) == entry.rows
    if len(spans) < 2 or not whole or not 0 < padding < min(span.rows for span in spans):
        return 0, ()
    ends = (span.first + span.rows - padding for span in spans)
    read = [source.lines(layer, ROWS, first - 1, padding + 1) for first in ends]
    zero = [rows[0].any() and not rows[1:].any() for rows in read]  # and no more than these
    return padding, tuple(np.flatnonzero(zero).tolist())


def _equal_shards(source: RowSource) -> tuple[tuple[Repeat, ...], int]:
    """Compare the same places of all shards; return what is equal, and how many were compared."""
    shards = [(layer, span) for layer in source.layers for span in source_spans(source, layer)]
    if len(shards) < 2:
        return (), len(shards)
    height = min(span.rows for _, span in shards)
    windows = max(1, min(_WINDOWS, _MOST_WINDOWS // len(shards)))
    count = min(_WINDOW_ROWS, height)
    equal: Counter[tuple[int, int]] = Counter()
    for window in range(windows):
        offset = (2 * window + 1) * (height - count) // (2 * windows)
        seen: dict[int, int] = {}
        for place, (layer, span) in enumerate(shards):
            rows, scales = _stored(source, layer, span.first + offset, count)
            if rows.any():
                before = seen.setdefault(digest(rows, scales), place)
                equal[before, place] += before != place
    repeats = []
    for (one, two), times in equal.items():
        (layer, first), (again, span) = shards[one], shards[two]
        if times:
            repeats.append(
                Repeat(
                    layer=layer, first=first.first, again=(again, span.first), rows=times * count
                )
            )
    return tuple(repeats), len(shards)
