"""Makes a patch from the rows of a base that are to be changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import InputError
from engram_cli.patches.patch import LayerPatch, Patch
from engram_cli.patches.replaced import read_rows, replaced_digest, rows_differ
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import RowType
from engram_cli.rows.source import SCALES, RowSource
from engram_cli.rows.stored_as import sampled_digest


def make_patch(
    base: RowSource,
    changed: Mapping[int, tuple[ArrayLike, NDArray[np.float32]]],
    *,
    description: str = "",
    facts: Mapping[str, str] | None = None,
) -> Patch:
    """Return the patch that gives rows of `base` other values: by layer, ids [n] in any order and
    values float32[n, dim].

    Values are encoded in the dtype of the base. Rows whose bytes stay the same are left out. Raises
    InputError for rows that the base has not, that are named twice, or whose values are not finite
    when they are stored; ArtifactError for a base that cannot be read.
    """
    layers = {layer: encoded_rows(base, layer, *each) for layer, each in changed.items()}
    return stored_patch(base, layers, description=description, facts=facts)


def encoded_rows(
    base: RowSource, layer: int, ids: ArrayLike, values: NDArray[np.float32]
) -> LayerPatch:
    """Return rows `ids` [n], in any order, with values float32[n, dim], as `base` stores them.

    Raises InputError for other shapes, and for a dtype that is read only.
    """
    row_type, dim, given = _row_type(base), base.dim or 0, np.asarray(ids)
    if given.ndim != 1 or values.shape != (len(given), dim):
        raise InputError(
            f"{given.shape} row numbers and values {values.shape} for layer {layer}",
            f"give ids [n] and values float32 [n, {dim}]",
        )
    order = np.argsort(given, kind="stable")
    chosen = np.ascontiguousarray(values[order], dtype=np.float32)
    rows, scales = _encoded(row_type, base, layer, chosen)
    return LayerPatch(ids=given[order].astype(np.int64), rows=rows, scales=scales)


def stored_patch(
    base: RowSource,
    layers: Mapping[int, LayerPatch],
    *,
    description: str = "",
    facts: Mapping[str, str] | None = None,
) -> Patch:
    """Return the patch that replaces rows of `base` by rows that are stored as those of the base.

    Rows whose bytes stay the same are left out. Raises as `make_patch`, and MismatchError for rows
    under another scale of the layer.
    """
    row_type = _row_type(base)
    patch = Patch(
        fingerprint=base.layout.fingerprint,
        dtype=row_type.name,
        dim=base.dim or 0,
        layers={layer: own for layer, own in sorted(layers.items()) if len(own)},
        base=base.digest or sampled_digest(base),
        base_format=base.format,
        description=description,
        facts=dict(facts or {}),
    )
    patch.require_sound()
    patch.require_fits(base)
    kept, before = {}, {}
    for layer, own in patch.layers.items():
        old = read_rows(base, layer, own.ids)
        other = rows_differ(old, own)
        if other.any():
            kept[layer], before[layer] = _some(own, other), _some(old, other)
    return Patch(
        fingerprint=patch.fingerprint,
        dtype=patch.dtype,
        dim=patch.dim,
        layers=kept,
        base=patch.base,
        base_format=patch.base_format,
        replaced=replaced_digest(before),
        description=patch.description,
        facts=patch.facts,
    )


def _row_type(base: RowSource) -> RowType:
    """Return how rows of the base are stored. Raises InputError where rows cannot be written so."""
    if base.dim is None or base.dtype is None:
        raise InputError(f"{base.path} holds no vectors", "give a table or a bundle")
    if base.dtype not in list(DTYPES):
        raise InputError(
            f"{base.path} has rows of {base.dtype}, which is read and not written",
            "make a table of them first: engram convert --dtype",
        )
    return DTYPES.load(base.dtype)


def _encoded(
    row_type: RowType, base: RowSource, layer: int, values: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    dim = values.shape[1]
    rows = np.empty((len(values), row_type.width(dim)), dtype=row_type.physical)
    scales = None
    if row_type.of_layer:
        scales = base.lines(layer, SCALES, 0, 1)
    elif row_type.scaling is not None:
        scales = np.empty(row_type.scaling.shape(len(values), dim), dtype=row_type.scaling.dtype)
    if len(values):
        row_type.encode(values, rows, scales)
    return rows, scales


def _some(own: LayerPatch, chosen: NDArray[np.bool_]) -> LayerPatch:
    if chosen.all():
        return own
    row_scales = own.row_scales
    return LayerPatch(
        ids=own.ids[chosen],
        rows=own.rows[chosen],
        scales=own.scales if row_scales is None else row_scales[chosen],
    )
