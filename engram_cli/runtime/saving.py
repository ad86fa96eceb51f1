"""save_engram and load: a live memory into a bundle, and a bundle's weights into a live memory.

Both keep every bit: rows in their own dtype, dense weights in float32, which holds float16 and
bfloat16 exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.errors import MismatchError, RuntimeAttachError
from engram_cli.formats.bundle import ROW_DTYPES, Bundle, BundleSpec, read_bundle
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.tensors import Array
from engram_cli.runtime import loading
from engram_cli.runtime.attach import memory_of
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import TABLE
from engram_cli.version import __version__

_PIECE_BYTES = 64 * 2**20
_DENSE = (torch.float32, torch.float16, torch.bfloat16)


def save_engram(
    model: nn.Module, folder: str | Path, *, name: str | None = None, force: bool = False
) -> Path:
    """Write the memory that `model` carries as a bundle, whole or not at all; `force` replaces one.

    Every process of a group must call it, since sharded weights are gathered; the first one writes.
    Raises RuntimeAttachError for weights that a bundle does not hold exactly, OutputError.
    """
    memory = memory_of(model, name)
    path = Path(folder)
    weights = {layer: _dense(memory, layer) for layer in memory.spec.layers}
    spec = replace(memory.spec, dtype=_row_dtype(memory))
    if not dist.is_initialized() or dist.get_rank() == 0:
        write_bundle(
            path,
            spec,
            _rows_of(memory, spec),
            lambda layer, zero_rows: weights[layer],
            tool_version=__version__,
            force=force,
        )
    return path


def load(
    model: nn.Module, folder: str | Path, *, name: str | None = None, verify: bool = False
) -> Memory:
    """Give the memory that `model` carries the weights of the bundle in a folder, in place.

    Optimisers keep their parameters. `verify` checks every byte first. Raises MismatchError for a
    bundle of another layout or module; with none attached, use `attach`.
    """
    memory = memory_of(model, name)
    bundle = read_bundle(folder, verify=verify)
    _check_same(memory.spec, bundle)
    for layer in memory.spec.layers:
        module = memory.layers[str(layer)]
        state = dict(module.state_dict())
        with torch.no_grad():
            begin = 0
            for piece in loading.table_pieces(bundle, layer):
                state[TABLE][begin : begin + len(piece)].copy_(piece)
                begin += len(piece)
            for key, value in bundle.dense[layer].items():
                state[key].copy_(torch.from_numpy(np.array(value)))
    return memory


def _check_same(spec: BundleSpec, bundle: Bundle) -> None:
    found = bundle.spec
    for what, mine, other in (
        ("fingerprint", spec.layout.fingerprint, found.layout.fingerprint),
        ("layers", spec.layers, found.layers),
        ("row size", spec.dim, found.dim),
        ("module", spec.module, found.module),
        ("hidden size", spec.hidden_size, found.hidden_size),
        ("packing", spec.packed, found.packed),
    ):
        if mine != other:
            raise MismatchError(
                f"the bundle {bundle.folder} has {what} {other}, the attached memory {mine}",
                "detach(model), then attach(model, folder)",
            )


def _dense(memory: Memory, layer: int) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    state = memory.layers[str(layer)].state_dict()
    for key in memory.spec.dense_shapes:
        value: Any = state[key]
        if value.dtype not in _DENSE:
            raise RuntimeAttachError(
                f"{key} of layer {layer} has dtype {value.dtype}, a bundle has float32",
                "save it from a model in float32, float16 or bfloat16",
            )
        if hasattr(value, "full_tensor"):  # sharded over the processes of a group
            value = value.full_tensor()
        found[key] = value.detach().to("cpu", torch.float32).numpy()
    return found


def _row_dtype(memory: Memory) -> str:
    """The dtype of the rows, which may have been moved to another since they were attached."""
    names = {
        str(_table(memory, layer).dtype).removeprefix("torch.") for layer in memory.spec.layers
    }
    if len(names) > 1 or not names <= set(ROW_DTYPES):
        raise RuntimeAttachError(
            f"rows of {', '.join(sorted(names))}", f"a bundle has {', '.join(ROW_DTYPES)}"
        )
    return names.pop()


def _rows_of(memory: Memory, spec: BundleSpec) -> Callable[[int], Iterator[tuple[int, Array]]]:
    step = max(1, _PIECE_BYTES // spec.row_bytes)

    def rows(layer: int) -> Iterator[tuple[int, Array]]:
        weight = _table(memory, layer)
        for first in range(0, len(weight), step):
            piece = weight[first : first + step].contiguous().cpu()
            if piece.dtype == torch.bfloat16:
                yield first, piece.view(torch.int16).numpy().view(np.uint16)
            else:
                yield first, piece.numpy()

    return rows


def _table(memory: Memory, layer: int) -> Tensor:
    weight = memory.layers[str(layer)].state_dict()[TABLE]
    assert isinstance(weight, Tensor)
    return weight.detach()
