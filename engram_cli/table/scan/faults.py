"""Looks for faults in stored rows: codes that are no numbers, zero rows, odd scales, saturation.

Rows are measured as they are stored. What is found adds up from piece to piece, in the order of the
rows, so that memory does not grow with the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.rows.dtypes import FLOAT32, FP8_E8M0, Floats, Items, RowType
from engram_cli.table.scan.kernels import codes as kernels

Bytes = NDArray[np.uint8]
LARGEST_VALUE = 2.0**15  # no row of an embedding has values beyond it
_EVERY, _FEW = 16, 256  # of many rows, or runs of words, one in sixteen is enough
BY_CHANCE = 1e-6  # how likely a run of zero rows may be before it counts as a hole
_E8M0_E4M3 = 33
_E8M0_BIAS, _E8M0_NAN = 127, 255
_KEYS = np.random.default_rng(0x656E6772616D).integers(0, 2**64, 128, dtype=np.uint64)
# Items of one byte: (bits that are the size, the largest size, the size of NaN). Others than e4m3
# are made into sizes by a table first.
_E4M3 = (0x7F, 0x7E, 0x7F)
_SIZES = (0xFF, 127, 128)
# Floats: the bits of an infinity; larger sizes are NaN.
_INFINITY = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
# ggml's blocks: the bytes at which their float16 scales lie.
_HALVES = {"q8_0": (0,), "q4_0": (0,), "q4_k": (0, 2), "q6_k": (208,)}


@dataclass(slots=True)
class ZeroRuns:
    """Runs of zero rows, added in the order of the rows; `longest` begins at row `longest_at`."""

    rows: int = 0
    zero: int = 0
    runs: int = 0
    longest: int = 0
    longest_at: int = 0
    _open: int = 0
    _next: int = 0

    def add(self, first: int, zero: NDArray[np.bool_]) -> None:
        """Take which rows from `first` on are zero; a gap before `first` ends a run."""
        self.rows += len(zero)
        carried = self._open if first == self._next else 0
        self._open, self._next = 0, first + len(zero)
        count = int(np.count_nonzero(zero))
        self.zero += count
        if not count:
            return
        edges = np.flatnonzero(np.diff(np.concatenate([[False], zero, [False]])))
        begins, lengths = edges[::2], edges[1::2] - edges[::2]
        self.runs += len(begins) - bool(carried and begins[0] == 0)
        begins, lengths = begins + first, lengths.copy()
        if carried and zero[0]:
            begins[0] -= carried
            lengths[0] += carried
        if zero[-1]:
            self._open = int(lengths[-1])
        at = int(np.argmax(lengths))
        if lengths[at] > self.longest:
            self.longest, self.longest_at = int(lengths[at]), int(begins[at])

    @property
    def likely(self) -> float:
        """How likely a row is to be zero, by how often a zero row follows one that is not."""
        others = self.rows - self.zero
        return 1.0 if not others else min(1.0, (self.runs + 1) / (others + 1))

    def is_hole(self, longest: int | None = None) -> bool:
        """Return whether chance makes no such run, with zero rows as likely as in the rest."""
        longest = self.longest if longest is None else longest
        if not longest:
            return False
        if self.zero == self.rows:
            return True
        if self.likely >= 1:
            return False
        return math.log(self.rows) + longest * math.log(self.likely) < math.log(BY_CHANCE)


@dataclass(slots=True)
class ScaleRange:
    """The scales of rows: how many, and how many are NaN, negative, or zero under other items.

    `least` and `largest` are the sizes of those that are neither NaN nor zero.
    """

    count: int = 0
    not_finite: int = 0
    negative: int = 0
    zero: int = 0
    least: float = math.inf
    largest: float = 0.0

    def merge(self, other: ScaleRange) -> None:
        """Add other scales."""
        self.count += other.count
        self.not_finite += other.not_finite
        self.negative += other.negative
        self.zero += other.zero
        self.least = min(self.least, other.least)
        self.largest = max(self.largest, other.largest)


def scale_range(scales: Floats, used: NDArray[np.bool_] | None = None) -> ScaleRange:
    """Return the range of widened scales; `used`: which of them have an item that is not zero."""
    if not scales.size:
        return ScaleRange()
    least, largest = float(scales.min()), float(scales.max())
    if least > 0 and largest < math.inf:
        return ScaleRange(count=scales.size, least=least, largest=largest)
    finite, zero = np.isfinite(scales), scales == 0
    sizes = np.abs(scales[finite & ~zero])
    return ScaleRange(
        count=scales.size,
        not_finite=int(scales.size - np.count_nonzero(finite)),
        negative=int(np.count_nonzero(scales < 0)),
        zero=int(np.count_nonzero(zero if used is None else zero & used)),
        least=float(sizes.min(initial=math.inf)),
        largest=float(sizes.max(initial=0)),
    )


@dataclass(slots=True, kw_only=True)
class RowFaults:
    """What was found in rows of `row_type`, `dim` values each.

    `not_finite` rows, the first of which is `first_bad`; `items` and how many of them are
    `saturated`, the largest that the dtype has (None where that says nothing). `largest`: the size
    of the largest value of plain floats.
    """

    row_type: RowType
    dim: int
    zero: ZeroRuns = field(default_factory=ZeroRuns)
    scales: ScaleRange = field(default_factory=ScaleRange)
    not_finite: int = 0
    first_bad: int | None = None
    items: int = 0
    saturated: int | None = None
    largest: float | None = None

    @property
    def largest_value(self) -> float:
        """The size of the largest value that was found, at most."""
        if self.largest is not None:
            return self.largest
        items = self.row_type.items
        return self.scales.largest * (items.largest if items.values is not None else 1.0)

    def take(self, first: int, ids: NDArray[np.int64] | None, found: Measured, used: int) -> None:
        """Add what was measured of rows from `first` on, whose row numbers are `ids`.

        Rows from `used` on pad the table, and may be zero.
        """
        self.zero.add(first, found.zero[: max(0, used - first)])
        bad = np.flatnonzero(found.bad)
        if len(bad):
            self.not_finite += len(bad)
            place = int(bad[0])
            number = first + place if ids is None else int(ids[place])
            self.first_bad = number if self.first_bad is None else min(self.first_bad, number)
        self.items += found.items
        if found.saturated is not None:
            self.saturated = (self.saturated or 0) + found.saturated
        if found.largest is not None:
            self.largest = max(self.largest or 0.0, found.largest)
        for scales in found.scales:
            self.scales.merge(scales)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of a piece of rows: `zero` and `bad` bool[n], and as `RowFaults` has it."""

    zero: NDArray[np.bool_]
    bad: NDArray[np.bool_]
    items: int
    saturated: int | None = None
    largest: float | None = None
    scales: tuple[ScaleRange, ...] = ()


def measure(row_type: RowType, dim: int, rows: NDArray[Any], scales: Any) -> Measured:
    """Measure rows [n, width] as they are stored, with their scales or None.

    Scales are [n, k]; the one of a layer is not measured here. Rows of blocks or floats that are
    not known here are decoded first.
    """
    items = row_type.items
    rows = np.ascontiguousarray(rows)
    if items.name in _INFINITY:
        return _floats(items, rows)
    if items.name in _HALVES:
        return _blocks(items, rows)
    codes, kind = rows.view(np.uint8), _E4M3
    if items.name == "e8m0_e4m3":
        blocks = rows.reshape(len(rows), -1, _E8M0_E4M3)
        codes = np.ascontiguousarray(blocks[:, :, 1:]).reshape(len(rows), -1)
        row_type, scales = FP8_E8M0, np.ascontiguousarray(blocks[:, :, 0])
    elif items.values is None:
        values = np.empty((len(rows), dim), dtype=np.float32)
        row_type.decode(rows, scales, values)
        return _floats(FLOAT32.items, values)
    elif items.name != "e4m3":
        codes, kind = _sizes(items)[codes], _SIZES
        if items.packed:
            codes = np.ascontiguousarray(codes.reshape(len(rows), -1)[:, :dim])
    if row_type.of_layer or scales is None:
        return _codes(kind, codes)
    return _scaled(_codes(kind, codes), row_type, codes, kind[0], scales)


@cache
def _sizes(items: Items) -> Bytes:
    """Return the sizes that stand for each byte of items: [256], or [256, 2] of two a byte.

    0 is zero, 127 the largest, 128 is no number; the others lie between.
    """
    assert items.values is not None
    sizes = np.abs(items.values)
    codes = np.clip(np.ceil(np.nan_to_num(sizes) / items.largest * 126), 0, 126)
    codes[sizes == items.largest] = _SIZES[1]
    codes[np.isnan(sizes)] = _SIZES[2]
    narrow = codes.astype(np.uint8)
    if not items.packed:
        return narrow
    byte = np.arange(256)
    return np.stack([narrow[byte & 15], narrow[byte >> 4]], axis=-1)


def digest(rows: NDArray[Any], scales: NDArray[Any] | None) -> int:
    """Return a digest of stored rows and scales, other than 0; equal contents have equal ones.

    It is of whole words, and of one in `_EVERY` pieces of them: compare what has equal digests.
    """
    value = np.uint64(len(rows))
    for part in (rows, scales):
        if part is not None:
            words = _words(part)
            every = _EVERY if len(words) >= _FEW * len(_KEYS) else 1
            value = kernels.digest(words, _KEYS, every, np.uint64(value))
    return int(value) or 1


def _words(part: NDArray[Any]) -> NDArray[np.uint64]:
    """Return an array as words, with zeros in the place of the last bytes that are missing."""
    flat = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    if len(flat) % 8:
        flat = np.concatenate([flat, np.zeros(-len(flat) % 8, dtype=np.uint8)])
    return flat.view(np.uint64)


def _codes(kind: tuple[int, int, int], codes: Bytes) -> Measured:
    """Measure codes of a byte [n, dim]; the saturated are counted in some of the rows."""
    mask, top, nan = kind
    largest = np.empty(len(codes), dtype=np.uint8)
    kernels.largest_of_bytes(codes, np.uint8(mask), largest)
    bad = largest >= nan
    every = _EVERY if len(codes) >= _FEW else 1  # a share needs no more
    saturated = int(kernels.count_of(codes, every, np.uint8(mask), np.uint8(top)))
    items = -(-len(codes) // every) * codes.shape[1]
    return Measured(zero=largest == 0, bad=bad, items=items, saturated=saturated)


def _scaled(
    found: Measured, row_type: RowType, codes: Bytes, mask: int, scales: NDArray[Any]
) -> Measured:
    """Add what the scales [n, k] of codes [n, dim] are."""
    assert row_type.scaling is not None
    powers = row_type.scaling.tensor == "float8_e8m0fnu"
    if powers:  # bytes are compared faster than what they stand for
        low, high = int(scales.min(initial=255)), int(scales.max(initial=0))
        if 0 < low <= high < _E8M0_NAN:
            least, largest = 2.0 ** (low - _E8M0_BIAS), 2.0 ** (high - _E8M0_BIAS)
            own = ScaleRange(count=scales.size, least=least, largest=largest)
            return replace(found, scales=(own,))
    widened = row_type.widen(scales)
    if powers:
        widened = np.where(scales == 0, np.float32(0), widened)  # 2^-127: as good as zero
    used = None
    if not widened.all():
        block = row_type.scaling.block or codes.shape[1]
        used = _used(codes & np.uint8(mask), block, scales.shape[1])
    bad: NDArray[np.bool_] = found.bad | ~np.isfinite(widened).all(axis=1)
    return replace(found, bad=bad, scales=(scale_range(widened, used),))


def _used(sizes: Bytes, block: int, count: int) -> NDArray[np.bool_]:
    """Return which blocks of sizes [n, dim] have one that is not zero: bool[n, count]."""
    padded = np.zeros((len(sizes), block * count), dtype=np.uint8)
    padded[:, : sizes.shape[1]] = sizes
    used: NDArray[np.bool_] = padded.reshape(len(sizes), count, block).max(axis=2) > 0
    return used


def _floats(items: Items, rows: NDArray[Any]) -> Measured:
    """Measure plain floats by their bits."""
    infinity = _INFINITY[items.name]
    bits = rows.view(np.uint32 if items.name == "float32" else np.uint16)
    largest = np.empty(len(bits), dtype=bits.dtype)
    find = kernels.largest_of_words if bits.itemsize == 4 else kernels.largest_of_halves
    find(bits, bits.dtype.type(2 ** (8 * bits.itemsize - 1) - 1), largest)
    bad = largest >= infinity
    top = np.max(largest[~bad], initial=0)
    if items.name == "bfloat16":
        value = np.array(int(top) << 16, dtype=np.uint32).view(np.float32)
    else:
        value = np.array(top, dtype=bits.dtype).view(rows.dtype)
    return Measured(zero=largest == 0, bad=bad, items=bits.size, largest=float(value))


def _blocks(items: Items, rows: Bytes) -> Measured:
    """Measure the float16 scales of ggml's blocks; a row is zero where all of them are."""
    assert items.block is not None
    blocks = rows.reshape(len(rows), -1, items.block[1])
    found, bad = [], np.zeros(len(rows), dtype=np.bool_)
    zero = np.ones(len(rows), dtype=np.bool_)
    for at in _HALVES[items.name]:
        halves = np.ascontiguousarray(blocks[:, :, at : at + 2]).view("<f2")[:, :, 0]
        scales = halves.astype(np.float32)
        bad |= ~np.isfinite(scales).all(axis=1)
        zero &= (scales == 0).all(axis=1)
        found.append(scale_range(scales, np.zeros(scales.shape, dtype=np.bool_)))
    return Measured(zero=zero, bad=bad, items=rows.size, scales=tuple(found))
