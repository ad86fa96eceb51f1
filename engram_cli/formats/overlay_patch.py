"""Overlays of other programs, `.pleo` and `.plepatch`, as patches of a table, and patches as these.

Neither names a layout. A .plepatch names the tensor of its layer; one that engram wrote also names
scheme, layer and base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.files import output_errors
from engram_cli.formats.base import require_agreement
from engram_cli.formats.overlay import (
    FORMAT,
    MANIFEST,
    PLEO_HEADER,
    PLEPATCH_HEADER,
    VERSION,
    Overlay,
)
from engram_cli.formats.overlay_write import (
    BYTES,
    GGML_NUMBERS,
    OVERLAY_KINDS,
    PLAIN,
    REPLACED_KINDS,
    WRITTEN_BY,
    tensor_name,
)
from engram_cli.outputs import new_file, prepare_output
from engram_cli.patches.making import encoded_rows
from engram_cli.patches.patch import LayerPatch, Patch
from engram_cli.patches.patch_file import patch_path, read_patch
from engram_cli.patches.replaced import as_bytes
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource

SUFFIXES = (".pleo", ".plepatch")
_TENSOR = re.compile(r"blk\.([0-9]{1,6})\.engram_embd\.weight")
_AGAIN = "take the overlay again from where it came"


def open_patch(path: str | Path, base: RowSource, layer: int | None = None) -> Patch:
    """Open a patch or an overlay for `base`; `layer`: of an overlay that does not say.

    Rows of an overlay that are not stored as those of the base are encoded as these. Raises as
    `read_patch`, InputError for an overlay that may be of several layers or is not of this base.
    """
    file = patch_path(path)
    if FORMAT.recognise(file) is None:
        if layer is not None:
            raise InputError(f"{path} says of which layers it is", "leave out --layer")
        return read_patch(file)
    overlay = FORMAT.open(file, None)
    assert isinstance(overlay, Overlay)
    require_agreement(overlay, _AGAIN)
    return _as_patch(overlay, base, layer)


def _as_patch(overlay: Overlay, base: RowSource, layer: int | None) -> Patch:
    manifest = overlay.manifest or {}
    number = _layer(overlay, base, layer)
    numbers = overlay.row_numbers()
    height = base.layout.layer(number).rows
    if (numbers.astype(np.int64) < 0).any() or int(numbers.max()) >= height:
        raise InputError(
            f"{overlay.path} has row {numbers.max():,}, layer {number} of {base.path} has "
            f"{height:,} rows",
            "it is of another table, or of another layer (--layer)",
        )
    ids = numbers.astype(np.int64)
    stored_as = manifest.get("dtype") if manifest.get("written_by") == WRITTEN_BY else None
    row_type = DTYPES.load(base.dtype or "")
    if (stored_as or overlay.stored_as) == base.dtype and not row_type.of_layer:
        own = _stored(overlay, base, ids)
    else:
        own = encoded_rows(base, number, ids, _values(overlay, base))
    made_for = manifest.get("base")
    about = made_for if isinstance(made_for, dict) else {}
    digest, form = about.get("digest"), about.get("format")
    patch = Patch(
        fingerprint=base.layout.fingerprint,
        dtype=base.dtype or "",
        dim=base.dim or 0,
        layers={number: own},
        base=digest if isinstance(digest, str) else None,
        base_format=form if isinstance(form, str) else None,
        description=f"overlay {overlay.path.name}",
    )
    patch.require_sound()
    return patch


def _layer(overlay: Overlay, base: RowSource, layer: int | None) -> int:
    """Return the layer of the base that an overlay is of. Raises InputError."""
    manifest = overlay.manifest or {}
    named = _TENSOR.fullmatch(overlay.tensor or "")
    own = manifest.get("layer") if manifest.get("written_by") == WRITTEN_BY else None
    if own is None and named is not None:
        own = int(named[1])
    if layer is not None and own is not None and layer != own:
        raise InputError(f"{overlay.path} is of layer {own}, not {layer}", "leave out --layer")
    chosen = layer if layer is not None else own
    if chosen is None and len(base.layers) == 1:
        chosen = base.layers[0]
    if chosen not in base.layers:
        what = "does not say of which layer it is" if chosen is None else f"is of layer {chosen}"
        raise InputError(
            f"{overlay.path} {what}, and {base.path} has {', '.join(map(str, base.layers))}",
            "name it with --layer",
        )
    return int(chosen)


def _values(overlay: Overlay, base: RowSource) -> NDArray[np.float32]:
    """Return the values float32[n, dim] of an overlay. Raises InputError."""
    pieces = [piece for piece in overlay.pieces() if piece is not None]
    if not pieces or overlay.width != base.dim:
        raise InputError(
            f"{overlay.path} has rows of {overlay.width} x {overlay.stored_as}, {base.path} of "
            f"{base.dim} x {base.dtype}",
            "give the overlay of this table",
        )
    return np.concatenate(pieces)


def _stored(overlay: Overlay, base: RowSource, ids: NDArray[np.int64]) -> LayerPatch:
    """Return the rows of an overlay that stores them as `base` does, ascending."""
    row_type, dim = DTYPES.load(base.dtype or ""), base.dim or 0
    if overlay.row_bytes != row_type.row_bytes(dim):
        raise InputError(
            f"{overlay.path} has {overlay.row_bytes} bytes a row, {base.path} "
            f"{row_type.row_bytes(dim)}",
            "give the overlay of this table",
        )
    order = np.argsort(ids, kind="stable")
    raw = overlay.stored_rows()[order]
    width = row_type.width(dim) * row_type.physical.itemsize
    scales = None
    if row_type.scaling is not None:
        scales = np.ascontiguousarray(raw[:, width:]).view(row_type.scaling.dtype)
    rows = np.ascontiguousarray(raw[:, :width]).view(row_type.physical)
    return LayerPatch(ids=ids[order], rows=rows, scales=scales)


def write_overlay(path: Path, patch: Patch, base: RowSource, *, force: bool = False) -> None:
    """Write a patch as the overlay that the suffix of `path` names: rows of one layer.

    Raises InputError for what it cannot hold, OutputError.
    """
    kind = path.suffix.removeprefix(".")
    if len(patch.layers) != 1:
        raise InputError(
            f"the patch has rows of {len(patch.layers)} layers, and a .{kind} is of one",
            "write a .patch.safetensors",
        )
    ((layer, own),) = patch.layers.items()
    if kind == "pleo" and int(own.ids[-1]) >= 2**31:
        raise InputError(f"row {own.ids[-1]:,} does not fit the int32 of a .pleo", "write another")
    if kind == "plepatch" and patch.dtype not in (*PLAIN, *BYTES):
        raise InputError(
            f"a .plepatch does not hold rows of {patch.dtype}",
            f"it holds {', '.join((*PLAIN, *BYTES))}; a .pleo holds float32 values",
        )
    prepare_output(path, REPLACED_KINDS[kind], force=force)
    with (
        new_file(path, OVERLAY_KINDS[kind], force=force and kind != "pleo") as part,
        output_errors(path),
        part.open("wb") as file,
    ):
        for piece in _pleo(own, patch) if kind == "pleo" else _plepatch(layer, own, patch, base):
            file.write(piece)


def _pleo(own: LayerPatch, patch: Patch) -> Iterator[bytes]:
    yield PLEO_HEADER.pack(b"PLEO", len(own), patch.dim)
    yield own.ids.astype("<i4").tobytes()
    values = np.empty((len(own), patch.dim), dtype=np.float32)
    patch.row_type.decode(np.ascontiguousarray(own.rows), _contiguous(own.scales), values)
    yield values.astype("<f4", copy=False).tobytes()


def _contiguous(part: NDArray[Any] | None) -> NDArray[Any] | None:
    return None if part is None else np.ascontiguousarray(part)


def _plepatch(layer: int, own: LayerPatch, patch: Patch, base: RowSource) -> Iterator[bytes]:
    about = {
        "format": MANIFEST,
        "written_by": WRITTEN_BY,
        "scheme": base.layout.scheme,
        "layer": layer,
        "rows": base.layout.layer(layer).rows,
        "dtype": patch.dtype,
        "base": None if patch.base is None else {"format": patch.base_format, "digest": patch.base},
    }
    manifest = json.dumps(about, sort_keys=True).encode()
    row_bytes = patch.row_type.row_bytes(patch.dim)
    is_bytes = patch.dtype in BYTES
    number = GGML_NUMBERS["int8" if is_bytes else patch.dtype]
    width = row_bytes if is_bytes else patch.dim
    name = tensor_name(base, layer).encode()
    yield PLEPATCH_HEADER.pack(
        b"PLEOVLY1", VERSION, number, width, row_bytes, len(own), len(manifest), name
    )
    yield manifest
    numbers = own.ids.astype("<u8").reshape(-1, 1)
    yield np.concatenate([as_bytes(part) for part in (numbers, *own.parts())], axis=1).tobytes()
