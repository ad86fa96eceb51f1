"""Converting a table: a finished store in, its rows in another dtype out as a TableSpec to build.

The rows come from the source, piece by piece, through the same build as a new table: same journal,
same lock, same end. Hits, lookup and the record of the init are the source's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.files import canonical_json
from engram_cli.table.grid import ChunkedArray, projection_array
from engram_cli.table.inits.base import Filler
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import TableStore, read_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRows:
    """An init whose rows are those of a table; it calls itself what the table's own init was."""

    source: TableStore

    @property
    def name(self) -> str:
        """The source's init."""
        return self.source.init

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the source's init."""
        return dict(self.source.attributes["init"].get("parameters", {}))

    def filler(self, layer: int, dim: int) -> Filler:
        """What reads the rows of `layer`."""

        def fill(first_row: int, out: NDArray[np.float32]) -> None:
            self.source.read(layer, first_row, out)

        return fill

    def bound(self, layer: int, dim: int) -> float | None:
        """None: only the rows can tell."""
        return None

    def arrays(self, dim: int) -> list[ChunkedArray]:
        """The projections of the source, which its init's parameters speak of."""
        names = [projection_array(layer) for layer in self.source.layout.layer_ids]
        return [self.source.arrays[name] for name in names if name in self.source.arrays]

    def values(self, array: ChunkedArray) -> NDArray[Any]:
        """The content of one of them."""
        return read_whole(self.source.path, array)


def conversion(
    source: TableStore, dtype: str, *, scale: float | None = None, chunk_rows: int | None = None
) -> TableSpec:
    """The table with the rows of `source` as `dtype`.

    Raises InputError for an unknown dtype, one that the source has already, or a scale that the
    dtype does not take.
    """
    if dtype == source.dtype:
        raise InputError(f"{source.path} is {dtype} already", "give another --dtype")
    statistics = source.attributes["statistics"]
    return TableSpec(
        layout=source.layout,
        dim=source.dim,
        dtype=dtype,
        init=StoredRows(source=source),
        chunk_rows=chunk_rows,
        tokens=None if statistics is None else statistics["tokens"],
        scale=scale,
        source={"dtype": source.dtype, "digest": source.digest},
    )


def is_conversion(table: TableStore, spec: TableSpec) -> bool:
    """Whether the finished `table` is what building the conversion `spec` would give.

    False where that cannot be told: a scale of a whole layer that is to be found.
    """
    asked = spec.attributes()
    names = asked.keys() - {"complete", "tool_version"}
    there = {name: table.attributes.get(name) for name in names}
    if canonical_json(there) != canonical_json({name: asked[name] for name in names}):
        return False
    if dict(table.arrays) != {array.name: array for array in spec.arrays}:
        return False
    if not spec.layer_scale_arrays:
        return True
    return spec.scale is not None and all(
        np.float32(spec.scale) == table.read_scales(layer, 0, 1)[0]
        for layer in table.layout.layer_ids
    )
