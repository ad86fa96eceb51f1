"""The rows of a source as checks: what is wrong with them, and what a sample of them can miss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engram_cli.formats.model_folder import Check, Result
from engram_cli.numbers import percent
from engram_cli.progress import Progress
from engram_cli.rows.source import RowSource
from engram_cli.table.scan.fault_scan import (
    CONFIDENCE,
    FaultScan,
    LayerFaults,
    Repeat,
    padded_shards,
    scan_faults,
    source_spans,
)
from engram_cli.table.scan.faults import LARGEST_VALUE, RowFaults

# A quantiser puts a few items of each block at the limit; this share means that it cut values off.
MOST_SATURATED = 0.1
_PER_BLOCK = 4  # of a short row or block, so many may be at the limit
_SHOWN = 3
_FINITE, _NO_HOLE = "all finite", "no stretch of zeros"
_ORDER, _REPEATED = "order of the shards", "repeated rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which rows were read: `rows_read` of `rows`, evenly spread, and the bytes of both parts.

    A fault in `fault_share` of a layer's rows is found with `confidence`; None for both where all
    rows were read.
    """

    rows: int
    rows_read: int
    read_bytes: int
    fault_share: float | None
    confidence: float | None

    def __str__(self) -> str:
        if self.fault_share is None or self.confidence is None:
            return f"all {self.rows:,} rows"
        return (
            f"{self.rows_read:,} of {self.rows:,} rows, evenly spread: a fault in "
            f"{100 * self.fault_share:.6g} % of a layer's rows is found with "
            f"{100 * self.confidence:.6g} %, one in fewer rows may be missed; --full reads all"
        )


def check_rows(
    source: RowSource, share: float | None, *, threads: int, progress: Progress
) -> tuple[list[Check], Coverage]:
    """Read rows; return the checks, and which rows were read.

    `share`: of faulty rows that a sample finds, None for all rows. Raises ArtifactError.
    """
    scan = scan_faults(source, share, threads=threads, progress=progress)
    # Checksums of the files say already that they hold what was written.
    written = source.digest is not None
    checks = [check for layer in scan.layers for check in _layer_checks(layer, written)]
    if not written:
        checks.append(_repeat_check(source, scan))
        checks += [check for layer in source.layers for check in _order_checks(source, layer)]
    rows, read = (sum(getattr(each, name) for each in scan.layers) for name in ("rows", "read"))
    return checks, Coverage(
        rows=rows,
        rows_read=read,
        read_bytes=scan.read_bytes,
        fault_share=scan.share,
        confidence=None if scan.share is None else CONFIDENCE,
    )


def _layer_checks(layer: LayerFaults, written: bool) -> Iterator[Check]:
    """Yield the checks of a layer; `written`: by engram, whose checksums hold."""
    found, label = layer.found, f"layer {layer.layer}"
    bad = f"{_rows(found.not_finite)} not finite, the first is row {found.first_bad or 0:,}"
    yield _check(
        f"{label}: values", found.not_finite, bad if found.not_finite else _FINITE, _FINITE
    )
    yield _zero_check(label, layer, written)
    if found.scales.count:
        yield _scale_check(label, found, written)
    elif found.largest is not None:
        largest = f"largest {found.largest:.4g}"
        beyond = found.largest > LARGEST_VALUE
        yield _check(f"{label}: sizes", beyond, largest, f"up to {LARGEST_VALUE:,.0f}")
    if found.saturated is not None and found.items:
        scaling = found.row_type.scaling
        block = (scaling.block if scaling is not None else 0) or found.dim
        most = max(MOST_SATURATED, _PER_BLOCK / block)
        share = found.saturated / found.items
        yield _check(
            f"{label}: items at the limit",
            share > most and not written,
            percent(share).replace("\u202f", " "),
            f"up to {percent(most, 0)}".replace("\u202f", " "),
        )


def _zero_check(label: str, layer: LayerFaults, written: bool) -> Check:
    runs, name = layer.found.zero, f"{label}: zero rows"
    amount = f"{_rows(runs.zero)} zero" if runs.zero else "no row is zero"
    if layer.hole is None or written:
        return _check(name, False, amount, _NO_HOLE)
    first, count = layer.hole
    if runs.zero == runs.rows:
        return _check(name, True, "every row that was read is zero", _NO_HOLE)
    about = "" if layer.whole else "about "
    stretch = f"{about}rows {first:,} to {first + count - 1:,} without a gap"
    return _check(name, True, f"{amount}, {stretch}", _NO_HOLE)


def _scale_check(label: str, found: RowFaults, written: bool) -> Check:
    scales, largest = found.scales, found.largest_value
    signed = found.row_type.items.block is not None  # as ggml's may be
    faults = {
        "NaN or infinite": scales.not_finite,
        "0 where items are not": 0 if written else scales.zero,
        "below 0": 0 if signed else scales.negative,
    }
    said = [f"{count:,} of {scales.count:,} {what}" for what, count in faults.items() if count]
    if largest > LARGEST_VALUE:
        said.append(f"values up to {largest:.4g}")
    ends = f"{scales.least:.4g} to {scales.largest:.4g}" if scales.largest else "all 0"
    expected = f"finite, above 0, values up to {LARGEST_VALUE:,.0f}"
    return _check(f"{label}: scales", bool(said), ", ".join(said) or ends, expected)


def _repeat_check(source: RowSource, scan: FaultScan) -> Check:
    """Say which rows are there twice: a shard that was uploaded twice, or under another's name."""
    if scan.compared < 2:
        found = "one block" if scan.share is None else "one shard, and no block of it compared"
        return Check(name=_REPEATED, result="undecided", found=found, expected="none")
    if not scan.repeats:
        what = "blocks of rows" if scan.share is None else "shards, at the same places of each"
        return Check(
            name=_REPEATED, result="ok", found=f"none in {scan.compared:,} {what}", expected="none"
        )
    shown = [_repeat(source, each) for each in scan.repeats[:_SHOWN]]
    rest = len(scan.repeats) - len(shown)
    more = f"; and {rest:,} more" if rest else ""
    return Check(name=_REPEATED, result="differs", found="; ".join(shown) + more, expected="none")


def _repeat(source: RowSource, repeat: Repeat) -> str:
    one = _place(source, repeat.layer, repeat.first)
    two = _place(source, *repeat.again)
    return f"{two} has {repeat.rows:,} rows of {one}"


def _place(source: RowSource, layer: int, row: int) -> str:
    """Return the layer, shard and file of a row, in words."""
    spans = source_spans(source, layer)
    at = next(i for i, span in enumerate(spans) if row < span.first + span.rows)
    shard = f" shard {at}" if len(spans) > 1 else ""
    return f"layer {layer}{shard} from row {row:,} ({Path(spans[at].file).name})"


def _order_checks(source: RowSource, layer: int) -> Iterator[Check]:
    """Yield whether the padding of a table is at the end of its last shard.

    Rows do not say which shard they belong to; only the padding, which no token reads, does.
    """
    spans = source_spans(source, layer)
    shards = len(spans)
    if shards < 2 or len({span.rows for span in spans}) == shards:
        return  # shards of other heights are told by these
    padding, zero = padded_shards(source, layer)
    name, last = f"layer {layer}: {_ORDER}", shards - 1
    expected = f"padding at the end of shard {last}"
    result: Result = "undecided"
    found = "nothing in the rows tells"
    if zero == (last,):
        result, found = "ok", f"{padding:,} zero rows at the end of shard {last}"
    elif len(zero) == 1:
        result, found = "differs", f"{padding:,} zero rows at the end of shard {zero[0]}"
    yield Check(name=name, result=result, found=found, expected=expected)


def _rows(count: int) -> str:
    return f"{count:,} row is" if count == 1 else f"{count:,} rows are"


def _check(name: str, wrong: object, found: str, expected: str) -> Check:
    return Check(name=name, result="differs" if wrong else "ok", found=found, expected=expected)
