"""Reads golden vectors that somebody else wrote; every field but the cases' names may be missing.

The file is untrusted: every list is checked for its size and the type of its entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.golden.cases import FORMAT, VERSION, Case
from engram_cli.errors import ArtifactError
from engram_cli.files import read_json
from engram_cli.hashing.layout import INT64, HashLayout
from engram_cli.hashing.lookback import Mask

MOST_BYTES = 64 * 2**20
MOST_CASES, MOST_TOKENS = 1000, 16_384  # cases of a file; tokens of all its cases
MOST_ROWS, MOST_DIM = 4096, 2**16  # rows with values; values of a row
_HINT = "docs/reference/golden-format.md describes the fields"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TheirCase:
    """A case with the numbers somebody has for it.

    `compressed`: int64[T] or None. `rows`: by layer int64[T, C], and bool[T], which positions have
    rows.
    """

    case: Case
    compressed: NDArray[np.int64] | None
    rows: Mapping[int, tuple[NDArray[np.int64], Mask]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TheirLayer:
    """What a file says of a layer; () for what it does not say."""

    multipliers: tuple[int, ...] = ()
    moduli: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TheirRow:
    """The values float32[dim] somebody has of a row."""

    layer: int
    row: int
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """Somebody's golden vectors. `filler_id` None: not in the file."""

    cases: tuple[TheirCase, ...]
    filler_id: int | None = None
    layers: Mapping[int, TheirLayer] = field(default_factory=dict)
    values: tuple[TheirRow, ...] = ()


def read_theirs(
    path: Path, layout: HashLayout, dim: int | None, ours: Mapping[str, Case]
) -> Theirs:
    """Read somebody's golden vectors for a layout; `ours` are our cases by name.

    A case without ids is ours of that name. Raises InputError, ArtifactError.
    """
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise ArtifactError(f"{path} is larger than {MOST_BYTES:,} bytes", "give fewer cases")
    document = read_json(path, "golden vectors")
    return _Reader(path, layout, dim, ours).document(document)


class _Reader:
    def __init__(
        self, path: Path, layout: HashLayout, dim: int | None, ours: Mapping[str, Case]
    ) -> None:
        self._path, self._layout, self._dim, self._ours = path, layout, dim, ours
        self._tokens = 0

    def document(self, document: dict[str, Any]) -> Theirs:
        given = document.get("format", FORMAT)
        self._need(given == FORMAT, f"format is {given!r:.60}, not '{FORMAT}'")
        version = self._number(document.get("version", VERSION), "version", 0, INT64)
        self._need(version <= VERSION, f"version {version} is newer than {VERSION}")
        cases = tuple(
            self._case(each, f"cases[{at}]")
            for at, each in enumerate(self._list(document.get("cases", []), "cases", MOST_CASES))
        )
        named = {each.case.name for each in cases}
        self._need(len(named) == len(cases), "it has a case twice")
        values = self._list(document.get("values", []), "values", MOST_ROWS)
        values = [] if self._dim is None else values  # the source has no vectors
        layout = self._object(document.get("layout", {}), "layout")
        theirs = Theirs(
            cases=cases,
            filler_id=self._filler(layout),
            layers=dict(self._layers(layout)),
            values=tuple(self._row(each, f"values[{at}]") for at, each in enumerate(values)),
        )
        self._need(
            bool(cases or theirs.values), "it has no cases, and no values of rows that ours has"
        )
        return theirs

    def _filler(self, layout: dict[str, Any]) -> int | None:
        value = layout.get("filler_id")
        return None if value is None else self._number(value, "layout.filler_id", -1, 2**31)

    def _layers(self, layout: dict[str, Any]) -> list[tuple[int, TheirLayer]]:
        found = []
        most = len(self._layout.layers)
        for at, each in enumerate(self._list(layout.get("layers", []), "layout.layers", most)):
            where = f"layout.layers[{at}]"
            own = self._object(each, where)
            layer = self._layer(own.get("layer"), f"{where}.layer")
            columns, order = self._layout.columns, self._layout.max_order
            found.append(
                (
                    layer,
                    TheirLayer(
                        multipliers=self._numbers(own, where, "multipliers", order, -INT64),
                        moduli=self._numbers(own, where, "moduli", columns, 1),
                        offsets=self._numbers(own, where, "offsets", columns, 0),
                    ),
                )
            )
        return found

    def _case(self, value: Any, where: str) -> TheirCase:
        own = self._object(value, where)
        name = own.get("name")
        if not isinstance(name, str) or len(name) > 200:
            raise self._wrong(f"{where}.name is {name!r:.60}, not a name")
        case = self._input(own, where, name)
        count = len(case.ids)
        self._tokens += count
        self._need(self._tokens <= MOST_TOKENS, f"its cases have more than {MOST_TOKENS:,} tokens")
        compressed = None
        if own.get("compressed") is not None:
            listed = self._list(own["compressed"], f"{where}.compressed", count, exact=True)
            compressed = np.array(
                [self._number(each, f"{where}.compressed", -1, 2**31) for each in listed],
                dtype=np.int64,
            )
        rows = {}
        for key, table in self._object(own.get("rows", {}), f"{where}.rows").items():
            number = int(key) if key.isdecimal() and len(key) <= 10 else key
            layer = self._layer(number, f"{where}.rows")
            rows[layer] = self._table(table, f"{where}.rows.{layer}", count)
        return TheirCase(case=case, compressed=compressed, rows=rows)

    def _input(self, own: dict[str, Any], where: str, name: str) -> Case:
        """Return what a case hashes: its own ids, else those of our case of the same name."""
        if own.get("ids") is None:
            if name not in self._ours:
                known = ", ".join(self._ours)
                raise self._wrong(f"{where} '{name}' has no ids, and ours are {known}"[:300])
            return self._ours[name]
        listed = self._list(own["ids"], f"{where}.ids", MOST_TOKENS)
        self._need(bool(listed), f"{where}.ids is empty")
        ids = [self._number(each, f"{where}.ids", 0, self._layout.vocab_size) for each in listed]
        masks = {}
        for mask in ("dead", "padding"):
            flags = own.get(mask)
            if flags is not None:
                flags = self._list(flags, f"{where}.{mask}", len(ids), exact=True)
                right = all(type(flag) is bool or flag in (0, 1) for flag in flags)
                self._need(right, f"{where}.{mask} holds other values than true and false")
                masks[mask] = np.array(flags, dtype=np.bool_)
        case = Case(name=name, why="", ids=np.array(ids, dtype=np.int64), **masks)
        lookup = self._layout.lookup
        if lookup is not None and (holes := np.flatnonzero(lookup[case.ids] < 0)).size:
            token = ids[int(holes[0])]
            raise self._wrong(f"{where}.ids has {token}, an id that no token has")
        return case

    def _table(self, value: Any, where: str, count: int) -> tuple[NDArray[np.int64], Mask]:
        columns = self._layout.columns
        rows = np.zeros((count, columns), dtype=np.int64)
        given = np.zeros(count, dtype=np.bool_)
        for at, line in enumerate(self._list(value, where, count, exact=True)):
            if line is None:
                continue
            here = f"{where}[{at}]"
            entries = self._list(line, here, columns, exact=True)
            rows[at] = [self._number(each, here, -INT64, INT64) for each in entries]
            given[at] = True
        return rows, given

    def _row(self, value: Any, where: str) -> TheirRow:
        own = self._object(value, where)
        layer = self._layer(own.get("layer"), f"{where}.layer")
        height = self._layout.layer(layer).rows
        listed = self._list(own.get("values"), f"{where}.values", self._dim or 0, exact=True)
        return TheirRow(
            layer=layer,
            row=self._number(own.get("row"), f"{where}.row", 0, height),
            values=np.array(
                [self._value(each, f"{where}.values") for each in listed], dtype=np.float32
            ),
        )

    def _value(self, value: Any, where: str) -> float:
        if value is None:
            return float("nan")
        if value in ("inf", "-inf"):
            return float(value)
        if type(value) not in (int, float):
            raise self._wrong(f"{where} holds {value!r:.60}, not a number")
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        most = float(np.finfo(np.float32).max)
        return number if abs(number) <= most else float("inf") if number > 0 else -float("inf")

    def _numbers(
        self, own: dict[str, Any], where: str, name: str, count: int, least: int
    ) -> tuple[int, ...]:
        if own.get(name) is None:
            return ()
        where = f"{where}.{name}"
        listed = self._list(own[name], where, count, exact=True)
        return tuple(self._number(each, where, least, INT64) for each in listed)

    def _layer(self, value: Any, where: str) -> int:
        known = self._layout.layer_ids
        if type(value) is not int or value not in known:
            names = ", ".join(map(str, known))
            raise self._wrong(f"{where} names layer {value!r:.40}, and ours are {names}")
        return value

    def _number(self, value: Any, where: str, least: int, end: int) -> int:
        """Return an integer, which may be written as a text, of `least` to `end` - 1."""
        if type(value) is str and len(value) <= 20 and value.removeprefix("-").isascii():
            value = int(value) if value.removeprefix("-").isdecimal() else value
        if type(value) is not int:
            raise self._wrong(f"{where} holds {value!r:.60}, not an integer")
        if not least <= value < end:
            raise self._wrong(f"{where} holds {value}, not {least} to {end - 1}")
        return value

    def _list(self, value: Any, where: str, most: int, *, exact: bool = False) -> list[Any]:
        if not isinstance(value, list):
            raise self._wrong(f"{where} is {value!r:.60}, not a list")
        if len(value) > most or (exact and len(value) != most):
            wanted = f"{most:,}" if exact else f"at most {most:,}"
            raise self._wrong(f"{where} has {len(value):,} entries, not {wanted}")
        return value

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(f"{where} is {value!r:.60}, not an object")
        return value

    def _need(self, true: bool, message: str) -> None:
        if not true:
            raise self._wrong(message)

    def _wrong(self, message: str) -> ArtifactError:
        return ArtifactError(f"{self._path}: {message}", _HINT)
