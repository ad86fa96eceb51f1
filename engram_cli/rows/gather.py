"""Rows in spans of files: read in order, mapped, or gathered at random.

Ranges are read, not mapped: mapped pages count as the process's memory.
For gathering, spans are mapped with the advice that reads are random: a fault then reads its page
and no more (the default reads megabytes around it). Faults wait one after another, so where a
sample of the rows is not in memory, the system is first asked for all their pages, without waiting:
that fills the disk's queue without a thread for each row.
Files behind addresses are read in ranges, several at a time: one for each row, or for rows nearby.
"""

from __future__ import annotations

import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.remote.path import is_remote, near
from engram_cli.rows import DTYPES
from engram_cli.rows.distant import RANGE_BYTES, take_distant
from engram_cli.rows.dtypes import RowType
from engram_cli.rows.source import HITS, ROWS, SCALES, Span

SAMPLE = 64  # rows whose place is asked for: 24 us compared with the 3 ms of 64k rows
THREADS = 4  # that ask for pages and wait for them; two already fill the disk's queue
FEW = 4096  # rows of an array that are taken through NumPy: loading Numba costs 0.7 s of CPU
DAMAGED = "see what is wrong with engram verify, then make it again"
_KERNELS = "engram_cli.rows.kernels"


class FileArray:
    """An array [rows, *tail] whose rows are in `spans`, ascending and without a gap between them.

    `hint`: what to do about a file that cannot be read. Methods raise ArtifactError for one. All
    may run in threads.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        dtype: np.dtype[Any],
        tail: tuple[int, ...] = (),
        hint: str = DAMAGED,
    ) -> None:
        cached = [replace(span, file=near(span.file)) for span in spans]
        self.distant = any(is_remote(span.file) for span in cached)
        self.spans = tuple(spans if self.distant else cached)
        self.dtype, self.tail, self.hint = dtype, tail, hint
        self.row_bytes = dtype.itemsize * prod(tail)
        self.rows = self.spans[-1].first + self.spans[-1].rows
        # Spans of equal heights need no search for a row's span.
        self._step = max(span.rows for span in self.spans)
        self._even = all(span.first == i * self._step for i, span in enumerate(self.spans))
        self._firsts = [span.first for span in self.spans]
        self._taken = 0  # rows taken before Numba was loaded
        self._dense = all(span.stride in (0, self.row_bytes) for span in self.spans)
        self._maps: dict[int, NDArray[Any]] = {}
        self._bases = np.zeros(len(self.spans), dtype=np.uint64)
        self._lock = Lock()

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Read `count` rows from `first` on, all of which the array has: [count, *tail]."""
        out: NDArray[Any] = np.empty((count, *self.tail), dtype=self.dtype)
        done = 0
        while done < count:
            index = bisect_right(self._firsts, first + done) - 1
            span = self.spans[index]
            offset = first + done - span.first
            here = min(span.rows - offset, count - done)
            if self._dense:
                target = out[done : done + here].reshape(-1).view(np.uint8).data
                self._fill(target, span.file, span.begin + offset * self.row_bytes)
            elif span.stride <= mmap.PAGESIZE:
                out[done : done + here] = self._strided(span, offset, here)
            elif self.distant:
                out[done : done + here] = self.take(first + np.arange(done, done + here))
            else:
                out[done : done + here] = self._map(index)[offset : offset + here]
            done += here
        return out

    def _strided(self, span: Span, offset: int, count: int) -> NDArray[Any]:
        """Read rows with the gaps between them: 4 times as fast as mapping all of their pages."""
        raw = np.empty((count - 1) * span.stride + self.row_bytes, dtype=np.uint8)
        self._fill(raw.data, span.file, span.begin + offset * span.stride)
        inner = np.empty((1, *self.tail), dtype=self.dtype).strides[1:]
        strides = (span.stride, *inner)
        return np.ndarray((count, *self.tail), self.dtype, raw, strides=strides)

    def chunks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, rows [n, *tail], mapped and read-only) for each span.

        Of files behind addresses, (first row, rows) that were read, at most RANGE_BYTES of them.
        """
        if self.distant:
            step = max(1, RANGE_BYTES // self.row_bytes)
            for first in range(0, self.rows, step):
                yield first, self.read(first, min(step, self.rows - first))
            return
        for index, span in enumerate(self.spans):
            yield span.first, self._map(index)

    def take(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows [n, *tail] at `ids` int64[n], all of which the array has."""
        out: NDArray[Any] = np.empty((len(ids), *self.tail), dtype=self.dtype)
        if self.distant:
            take_distant(self.spans, self.row_bytes, ids, out, self.hint)
            return out
        if not self._dense or self._are_few(len(ids)):
            span_of = np.searchsorted(self._firsts, ids, side="right") - 1
            for index in np.unique(span_of).tolist():
                here = span_of == index
                out[here] = self._map(index, random=self._dense)[ids[here] - self._firsts[index]]
            return out
        ids = self._numbered(ids)
        self._map_spans(ids)
        if self._in_memory(ids):
            self._copy(ids, out)
            return out
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._ask_for, np.array_split(np.sort(ids), THREADS)))
            parts = (np.array_split(each, THREADS) for each in (ids, out))
            list(pool.map(self._copy, *parts))
        return out

    def _are_few(self, count: int) -> bool:
        """Return whether these rows are among the first few, which are not worth loading Numba."""
        if _KERNELS in sys.modules:
            return False
        self._taken += count
        return self._taken <= FEW

    def _numbered(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number rows as if all spans were as high as the highest, as the kernels need it."""
        if self._even:
            return ids
        firsts = np.array(self._firsts)
        span_of = np.searchsorted(firsts, ids, side="right") - 1
        numbered: NDArray[np.int64] = span_of * self._step + ids - firsts[span_of]
        return numbered

    def _map_spans(self, ids: NDArray[np.int64]) -> None:
        """Map the spans of numbered rows that are not mapped yet."""
        if self._bases.all():
            return
        wanted = np.zeros(len(self.spans), dtype=np.bool_)
        wanted[ids // self._step] = True
        with self._lock:
            for index in np.flatnonzero(wanted & (self._bases == 0)).tolist():
                self._maps[index] = self._map(index, random=True)
                self._bases[index] = self._maps[index].ctypes.data

    def _in_memory(self, ids: NDArray[np.int64]) -> bool:
        """Return whether all of a sample of the rows is; True where the system does not tell."""
        from engram_cli.rows import kernels  # Numba takes 0.3 s and 30 MB; opening needs none of it

        sample = np.ascontiguousarray(ids[:: max(1, len(ids) // SAMPLE)])
        found = kernels.rows_in_memory(
            self._bases, sample, self._step, self.row_bytes, mmap.PAGESIZE
        )
        return bool(found == len(sample))

    def _ask_for(self, ids: NDArray[np.int64]) -> None:
        from engram_cli.rows import kernels

        kernels.want_rows(self._bases, ids, self._step, self.row_bytes, mmap.PAGESIZE)

    def _copy(self, ids: NDArray[np.int64], out: NDArray[Any]) -> None:
        from engram_cli.rows import kernels

        flat = out.reshape(-1).view(np.uint8)
        kernels.take_rows(self._bases, ids, self._step, self.row_bytes, flat)

    def _fill(self, target: memoryview, file: Path, begin: int) -> None:
        try:
            with file.open("rb", buffering=0) as opened:
                opened.seek(begin)
                while target:
                    read = opened.readinto(target)
                    if not read:
                        raise ArtifactError(f"{file} ends too early", self.hint)
                    target = target[read:]
        except OSError as error:
            raise ArtifactError(f"{file} cannot be read: {error.strerror}", self.hint) from None

    def _map(self, index: int, *, random: bool = False) -> NDArray[Any]:
        """Map the rows of a span, read-only; with `random` nothing is read ahead."""
        span, stride = self.spans[index], self.spans[index].stride or self.row_bytes
        skipped = span.begin % mmap.ALLOCATIONGRANULARITY
        size = (span.rows - 1) * stride + self.row_bytes + skipped
        try:
            with span.file.open("rb") as file:
                mapped = mmap.mmap(
                    file.fileno(), size, access=mmap.ACCESS_READ, offset=span.begin - skipped
                )
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{span.file} cannot be mapped: {error}", self.hint) from None
        if random and hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        inner = np.empty((1, *self.tail), dtype=self.dtype).strides[1:]
        return np.ndarray(
            (span.rows, *self.tail), self.dtype, mapped, skipped, strides=(stride, *inner)
        )


class HeldArray(FileArray):
    """A small array [rows, *tail] in memory, whose bytes are not in files as they are."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values
        self.spans, self.dtype, self.tail, self.distant = (), values.dtype, values.shape[1:], False
        self.row_bytes, self.rows = values.dtype.itemsize * prod(self.tail), len(values)

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Return `count` rows from `first` on: [count, *tail]."""
        return self.values[first : first + count].copy()

    def chunks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (0, all rows)."""
        yield 0, self.values

    def take(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows [n, *tail] at `ids` int64[n]."""
        taken: NDArray[Any] = self.values[ids]
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """A `RowSource` whose parts are arrays in files.

    `parts`: by layer and part, as `rows.source` names them. Scales of shape [1] are those of
    a layer that has one for all rows.
    """

    format: str
    path: Path
    layout: HashLayout
    layers: tuple[int, ...]
    dim: int | None = None
    dtype: str | None = None
    digest: str | None = None
    parts: Mapping[tuple[int, str], FileArray] = field(default_factory=dict, repr=False)

    @property
    def row_type(self) -> RowType:
        """How rows are stored."""
        return DTYPES.load(self.dtype or "")

    @property
    def has_hits(self) -> bool:
        """Whether there is a number of hits for each row."""
        return any(part == HITS for _, part in self.parts)

    def spans(self, layer: int, part: str = ROWS) -> tuple[Span, ...]:
        """Return the spans of files that hold a part of a layer; () where it has none."""
        array = self._part(layer, part)
        return () if array is None else array.spans

    def chunks(
        self, layer: int | None = None, part: str = ROWS
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, [n, ...] as stored, read-only and mapped) for each span of a part."""
        return self._array(layer, part).chunks()

    def lines(self, layer: int | None, part: str, first: int, count: int) -> NDArray[Any]:
        """Read `count` rows of a part from `first` on, or the one scale [1] of the layer.

        Raises InputError for rows that the layer has not, ArtifactError. May run in threads.
        """
        array = self._array(layer, part)
        if _is_single(array, part):
            return array.read(0, 1)
        if not 0 <= first <= array.rows - count:
            raise InputError(
                f"rows {first} to {first + count} of the {array.rows} rows of layer {layer}",
                "ask for rows that the layer has",
            )
        return array.read(first, count)

    def stored(self, layer: int | None, ids: ArrayLike) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the rows [n, width] at `ids` [n] as stored, and their scales or the layer's one.

        Raises InputError for rows that the layer has not, ArtifactError for what cannot be read.
        """
        rows = self._array(layer, ROWS)
        wanted = _row_numbers(ids, rows.rows, self.layout.layer(layer).layer)
        taken = rows.take(wanted)
        if self.row_type.scaling is None:
            return taken, None
        scales = self._array(layer, SCALES)
        if not _is_single(scales, SCALES) and scales.rows != rows.rows:
            raise ArtifactError(
                f"{self.path} has {scales.rows:,} scales of {rows.rows:,} rows", DAMAGED
            )
        return taken, scales.read(0, 1) if _is_single(scales, SCALES) else scales.take(wanted)

    def vectors(self, layer: int | None, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the rows of a layer at `ids` [n], in any order, as float32[n, dim].

        Raises as `stored`.
        """
        stored, scales = self.stored(layer, ids)
        values = np.empty((len(stored), self.dim or 0), dtype=np.float32)
        self.row_type.decode(stored, scales, values)
        return values

    def read(self, layer: int | None, first: int, values: NDArray[np.float32]) -> None:
        """Read the rows of a layer from `first` on into `values` float32[n, dim], contiguous.

        Raises as `lines`. May run in threads.
        """
        stored = self.lines(layer, ROWS, first, len(values))
        scaled = self.row_type.scaling is not None
        scales = self.lines(layer, SCALES, first, len(values)) if scaled else None
        self.row_type.decode(stored, scales, values)

    def hits_at(self, layer: int | None, ids: ArrayLike) -> NDArray[np.uint32]:
        """Return the hits of the rows at `ids` [n] as uint32[n]. Raises as `stored`."""
        hits = self._array(layer, HITS)
        return hits.take(_row_numbers(ids, hits.rows, self.layout.layer(layer).layer))

    def _part(self, layer: int, part: str) -> FileArray | None:
        return self.parts.get((layer, part))

    def _array(self, layer: int | None, part: str) -> FileArray:
        number = self.layout.layer(layer).layer
        array = self._part(number, part)
        if array is not None:
            return array
        if part == HITS:
            raise InputError(f"{self.path} holds no hits", "build it from statistics")
        if part == SCALES and self._part(number, ROWS) is not None:
            raise InputError(f"rows of {self.dtype} have no scales", "take the rows alone")
        raise InputError(
            f"{self.path} has no {part} of layer {number}",
            f"its layers are {', '.join(map(str, self.layers))}",
        )


def _is_single(array: FileArray, part: str) -> bool:
    """Return whether one scale serves all rows of the layer."""
    return part == SCALES and array.tail == ()


def _row_numbers(ids: ArrayLike, rows: int, layer: int) -> NDArray[np.int64]:
    """Return `ids` as contiguous int64[n], each of them below `rows`. Raises InputError."""
    wanted = np.asarray(ids)
    if wanted.size == 0:
        wanted = wanted.astype(np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise InputError(
            f"row indices are {wanted.dtype} of shape {wanted.shape}", "give integers [n]"
        )
    # As unsigned numbers the negative ones are past the end too.
    outside = wanted.astype(np.uint64, copy=False) >= rows
    if outside.any():
        raise InputError(
            f"row {wanted[outside][0]} is outside the {rows} rows of layer {layer}",
            "rows are those that hashing with this table's layout gives",
        )
    return np.require(wanted, np.int64, ["C", "W"])  # kernels take writable arrays alone
