"""Defines the result of `inspect`, with no more imports than its headers need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engram_cli.formats.base import Digest
from engram_cli.formats.model_folder import Check
from engram_cli.formats.stored_layers import StoredLayer
from engram_cli.remote.store import ReadCount

if TYPE_CHECKING:  # what is read of rows: Numba's kernels, a second to load
    from engram_cli.commands.lookup.rows import OtherNgram
    from engram_cli.commands.probe import ProbeResult
    from engram_cli.table.scan.contents import Duplicates
    from engram_cli.table.scan.scan import Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class NormBins:
    """The norms of an order's rows: `rows[i]` lie from `low[i]` up to `low[i + 1]`."""

    layer: int
    order: int
    low: tuple[float, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRows:
    """A layer's rows, and how many of them have equal contents."""

    layer: int
    duplicates: Duplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class HotRow:
    """One of the hottest rows of an order, with the known n-grams that fall on it."""

    layer: int
    order: int
    head: int
    row: int
    hits: int
    ngrams: tuple[OtherNgram, ...]
    known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutColumn:
    """A column of the layout: its head's rows begin at table row `offset`, `modulus` of them."""

    layer: int
    order: int
    head: int
    modulus: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectResult:
    """What lies at the path. `facts` are for people; everything else is what they are made from.

    `complete` is False for a half-built table, of which no more than `facts` is known.
    `format` is `kind`, None for a vocabulary; `foreign`: whether it is another program's.
    `multipliers`: by layer, as strings, since they exceed 53 bits. `columns`, `norms`, `duplicates`
    and `hottest` are empty where no rows were read, `probe` is None where nothing was asked.
    `rows_read`: the rows whose vectors were read; where they were `sampled`, figures of rows are
    estimates, with their errors in `columns`. `read`: headers and rows, and of a source behind an
    address everything else too.
    """

    path: Path
    kind: str
    complete: bool
    facts: tuple[tuple[str, str], ...]
    digests: tuple[Digest, ...]
    files: int
    stored_bytes: int
    format: str | None = None
    foreign: bool = False
    dialect: str | None = None
    scheme: str | None = None
    layers: tuple[StoredLayer, ...] = ()
    checks: tuple[Check, ...] = ()
    multipliers: tuple[tuple[int, tuple[str, ...]], ...] = ()
    layout: tuple[LayoutColumn, ...] = ()
    columns: tuple[Columns, ...] = ()
    norms: tuple[NormBins, ...] = ()
    duplicates: tuple[LayerRows, ...] = ()
    hottest: tuple[HotRow, ...] = ()
    probe: ProbeResult | None = None
    stats: Path | None = None
    read_bytes: int = 0
    seconds: float = 0.0
    sampled: bool = False
    rows_read: int = 0
    read: ReadCount | None = None
    report: Path | None = None
