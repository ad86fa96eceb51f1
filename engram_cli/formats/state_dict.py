"""Plans a file of rows and of the tensors next to them, safetensors or torch's, for `row_files`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import EngramError, InputError
from engram_cli.formats import row_plan
from engram_cli.formats.bundle_rows import BundleRows
from engram_cli.formats.model_folder import CheckpointRows, FoundTensor
from engram_cli.formats.module_spec import ENGRAM_PEFT, ENGRAM_V1
from engram_cli.formats.row_plan import NewFile, Place, RowFiles
from engram_cli.hashing.layout import HashLayout
from engram_cli.remote.path import is_remote
from engram_cli.rows.copying import Extent
from engram_cli.rows.safetensors import TensorSpec, encode_header, file_metadata
from engram_cli.rows.source import ROWS, RowSource
from engram_cli.rows.torch_file import record_names
from engram_cli.rows.torch_write import MARK, plan_torch
from engram_cli.rows.views import origin

WRITTEN_BY = {"written_by": "engram-tables"}
TORCH_SUFFIXES = (".pt", ".pth")
# The module of bundles whose weights have the names of a format.
_MODULES = {"demo": ENGRAM_V1, "engram-peft": ENGRAM_PEFT}
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTensor:
    """A tensor to write: the rows of `layer`, values, or a tensor of another file."""

    spec: TensorSpec
    layer: int | None = None
    values: NDArray[Any] | FoundTensor | None = None


ModuleTensor = FoundTensor | NDArray[Any]


def rows_tensor(source: RowSource, layer: int, name: str) -> StateTensor:
    """Return the tensor [rows, dim] of a layer's rows."""
    shape = (source.layout.layer(layer).rows, source.dim or 0)
    return StateTensor(
        spec=TensorSpec(name=name, dtype=source.dtype or "", shape=shape), layer=layer
    )


def integers_tensor(values: Sequence[int], name: str) -> StateTensor:
    """Return int64[n]."""
    spec = TensorSpec(name=name, dtype="int64", shape=(len(values),))
    return StateTensor(spec=spec, values=np.array(values, dtype="<i8"))


def copied_tensor(tensor: ModuleTensor, name: str) -> StateTensor:
    """Return a tensor of another file, or float32 values, under a new name."""
    dtype = tensor.dtype if isinstance(tensor, FoundTensor) else "float32"
    spec = TensorSpec(name=name, dtype=dtype, shape=tuple(tensor.shape))
    return StateTensor(spec=spec, values=tensor)


def require_rows(source: RowSource, scheme: str, target: str) -> HashLayout:
    """Return the layout of a source with float rows in all its layers, hashed by `scheme`.

    Raises InputError for what a state dict of `target` cannot hold.
    """
    layout = source.layout
    if layout.scheme != scheme:
        raise InputError(
            f"{source.path} is hashed by {layout.scheme}, and {target} hashes by {scheme}",
            f"build a table with --scheme {scheme}",
        )
    row_plan.require_rows(source, target)
    if source.dtype not in FLOATS:
        raise InputError(
            f"{source.path} has rows of {source.dtype}, and {target} holds plain floats",
            f"give --dtype {' or '.join(FLOATS)}",
        )
    for entry in layout.layers:
        if entry.rows != sum(entry.moduli):
            raise InputError(
                f"{source.path}: layer {entry.layer} has {entry.rows:,} rows for heads of "
                f"{sum(entry.moduli):,}",
                f"{target} has no rows behind the last head's",
            )
    return layout


def module_tensors(source: RowSource, name: str) -> dict[int, dict[str, ModuleTensor]]:
    """Return what lies next to the rows of a source of format `name`, by layer and by what it is.

    Also of a bundle with the same module. Empty for a source that has another module or none.
    """
    before = origin(source)
    if isinstance(before, BundleRows):
        bundle = before.bundle
        if bundle.spec.module.kind != _MODULES[name]:
            return {}
        return {layer: dict(bundle.dense[layer]) for layer in source.layers}
    if before.format != name or not isinstance(before, CheckpointRows):
        return {}
    found: dict[int, dict[str, ModuleTensor]] = {}
    for layer, names in before.modules.items():
        own = {what: before.folder.tensors[each] for what, each in names.items()}
        found[layer] = {what: tensor for what, tensor in own.items() if tensor.shape}
    return found


def state_dict_file(
    name: str, tensors: Sequence[StateTensor], metadata: Mapping[str, str], source: RowSource
) -> RowFiles:
    """Return the plan of a safetensors file with `tensors` in order, or of one of `torch.save`.

    The suffix decides. Of the latter the checksums are missing: see `torch_write.write_checksums`.
    """
    specs = [tensor.spec for tensor in tensors]
    head: dict[int, bytes] = {}
    if name.endswith(TORCH_SUFFIXES):
        torch = plan_torch(specs)
        head, begins, size = dict(torch.head), torch.begins, torch.size
    else:
        head[0] = encode_header(specs, metadata)
        ends = tuple(accumulate((spec.nbytes for spec in specs), initial=len(head[0])))
        begins, size = ends[:-1], ends[-1]
    copies, places = [], []
    for tensor, begin in zip(tensors, begins, strict=True):
        if tensor.layer is not None:
            rows = tensor.spec.shape[0]
            places.append(
                Place(file=name, layer=tensor.layer, part=ROWS, begin=begin, first=0, rows=rows,
                      width=tensor.spec.nbytes // rows)
            )  # fmt: skip
        elif isinstance(tensor.values, FoundTensor) and is_remote(tensor.values.file):
            head[begin] = tensor.values.values().tobytes()
        elif isinstance(tensor.values, FoundTensor):
            found = tensor.values
            extent = Extent(begin=found.place.begin, size=tensor.spec.nbytes, to=begin)
            copies.append((found.file, extent))
        elif tensor.values is not None:
            head[begin] = tensor.values.tobytes()
    new = NewFile(name=name, size=size, head=head, copies=tuple(copies))
    return RowFiles(source=source, dtype=source.dtype or "", files=(new,), places=tuple(places))


def is_own(path: Path) -> bool:
    """Return whether engram wrote a state dict, by its metadata or by a record of the archive."""
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"
        if is_archive:
            return any(name.endswith(f"/{MARK}") for name in record_names(path))
        return file_metadata(path).get("written_by") == WRITTEN_BY["written_by"]
    except (EngramError, OSError):
        return False
