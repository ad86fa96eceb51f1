"""Save a live memory as a bundle; `restoring` loads the weights of one into a live memory.

Both keep every bit: rows in their own dtype, quantised ones as they are stored, dense weights in
float32, which holds float16 and bfloat16 exactly. PEFT's adapters around a memory's modules are
saved as the model computes: those in force are merged, those switched off are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.errors import OutputError, RuntimeAttachError
from engram_cli.files import local_path
from engram_cli.formats.bundle_files import CARD
from engram_cli.formats.bundle_spec import ROWS, SCALES, BundleSpec
from engram_cli.formats.bundle_writer import model_card, write_bundle
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.safetensors import Array
from engram_cli.runtime.adapters import adapted, base_state, merged_state
from engram_cli.runtime.carried import memory_of
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import HELD, MemoryModule
from engram_cli.runtime.sharding.trained.gathering import Blocks, Part, write_together
from engram_cli.runtime.sharding.trained.rows import sharded_rows
from engram_cli.runtime.tiers import PlacedRows
from engram_cli.version import __version__

States = Mapping[int, Mapping[str, Tensor]]  # of each layer, by the names in a state dict

_PIECE_BYTES = 64 * 2**20
_DENSE = (torch.float32, torch.float16, torch.bfloat16)


def save_engram(
    model: nn.Module, folder: str | Path, *, name: str | None = None, force: bool = False
) -> Path:
    """Write the memory that `model` carries as a bundle, whole or not at all; `force` replaces one.

    PEFT's adapters on the memory's modules are merged into what is written, with a warning that
    names them; the model keeps them apart. Hits stay those of the bundle that the rows came from,
    whatever training made of the rows. Every process of a group must call it, since sharded weights
    are gathered; the first one writes. Raises RuntimeAttachError for weights that a bundle does not
    hold exactly, OutputError.
    """
    memory = memory_of(model, name)
    path = local_path(folder)
    if not sharded_rows(memory.layers):  # else the first process alone looks, and tells the others
        _check_new(path, force)
    states = computed_states(memory)
    merged = [
        f"{adapter} of layer {layer}"
        for layer in memory.spec.layers
        for adapter in adapted(memory.layers[str(layer)])
    ]
    if merged:
        warnings.warn(
            "the bundle has what the model computes, adapters in force merged into the weights: "
            + ", ".join(merged),
            stacklevel=2,
        )
    is_writer = not dist.is_initialized() or dist.get_rank() == 0
    write_memory(memory, states, path, force=force, is_writer=is_writer)
    return path


def write_memory(
    memory: Memory,
    states: States,
    path: Path,
    *,
    force: bool,
    is_writer: bool = True,
    saved_with: Sequence[str] = (),
) -> None:
    """Write a memory with these weights as the bundle `path`, whole or not at all.

    Every process of a group must call it where weights are sharded; one `is_writer`, the first one
    where rows are distributed over processes. `saved_with`:
    the names of all memories that are saved in one checkpoint, in the order they were attached.
    Raises RuntimeAttachError for weights that a bundle does not hold exactly, OutputError.
    """
    states = {layer: _whole(memory, layer, state) for layer, state in states.items()}
    weights = {layer: _dense(memory, layer, state) for layer, state in states.items()}
    spec = replace(memory.spec, dtype=_row_dtype(memory, states))

    def write(gathered: Callable[[int], Blocks] | None = None) -> None:
        _check_new(path, force)
        write_bundle(
            path,
            spec,
            _stored(memory, spec, states, ROWS, gathered),
            lambda layer, zero_rows: weights[layer],
            scales=_stored(memory, spec, states, SCALES),
            hits=_hits(memory) if memory.hits else None,
            tool_version=__version__,
            force=force,
            extra_files={CARD: model_card(spec).encode()},
            saved_with=saved_with,
        )

    sharded = sharded_rows(memory.layers).values()
    if sharded:
        write_together([Part(rows.weight.detach(), rows.height) for rows in sharded], write)
    elif is_writer:
        write()


def _check_new(path: Path, force: bool) -> None:
    if not force and path.exists():
        raise OutputError(
            f"{path} already exists", "pass force=True to replace it, or name another folder"
        )


def computed_states(memory: Memory) -> States:
    """Return each layer's weights as the model computes: adapters in force are merged."""
    return {layer: merged_state(memory.layers[str(layer)]) for layer in memory.spec.layers}


def base_states(memory: Memory) -> States:
    """Return each layer's weights under its adapters, as if it had never had one.

    Raises RuntimeAttachError where an adapter is merged into them.
    """
    return {layer: base_state(memory.layers[str(layer)]) for layer in memory.spec.layers}


def check_plain(state: Mapping[str, Tensor], key: str, layer: int) -> None:
    """Raise RuntimeAttachError for a weight that is not there as one tensor of numbers."""
    value: Any = state.get(key)
    if isinstance(value, Tensor) and value.is_meta:
        raise RuntimeAttachError(
            f"{key} of layer {layer} is offloaded",
            "accelerate.hooks.remove_hook_from_submodules(model) first, which brings it back",
        )
    if type(value) not in (Tensor, nn.Parameter) and not hasattr(value, "full_tensor"):
        what = "missing" if value is None else f"a {type(value).__name__}"
        raise RuntimeAttachError(
            f"{key} of layer {layer} is {what}: its layer was quantised, or replaced",
            "save before that, or keep the bundle that was attached",
        )


def _dense(
    memory: Memory, layer: int, state: Mapping[str, Tensor]
) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    _check_shapes(memory, layer, state)
    for key in memory.spec.dense_shapes:
        value = state[key]
        if value.dtype not in _DENSE:
            raise RuntimeAttachError(
                f"{key} of layer {layer} has dtype {value.dtype}, a bundle has float32",
                "save it from a model in float32, float16 or bfloat16",
            )
        found[key] = value.detach().to("cpu", torch.float32).numpy()
    return found


def _whole(memory: Memory, layer: int, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's weights: offloaded ones fetched, those whole that processes share."""
    whole = dict(state)
    if any(isinstance(value, Tensor) and value.is_meta for value in whole.values()):
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        fetched = get_state_dict_offloaded_model(memory.layers[str(layer)])
        whole |= {key.replace("base_layer.", ""): value for key, value in fetched.items()}
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in whole.items()}


def _check_shapes(memory: Memory, layer: int, state: Mapping[str, Tensor]) -> None:
    """Raise RuntimeAttachError for weights that were cut up, as ZeRO does, or are another's."""
    spec = memory.spec
    shapes: dict[str, tuple[int, ...]] = dict(spec.dense_shapes)
    if not memory.is_placed and not sharded_rows(memory.layers):
        shapes |= {HELD[part]: spec.tensor(layer, part).shape for part in spec.parts}
    for key, shape in shapes.items():
        check_plain(state, key, layer)
        if tuple(state[key].shape) != tuple(shape):
            raise RuntimeAttachError(
                f"{key} of layer {layer} has shape {tuple(state[key].shape)}, not {tuple(shape)}",
                "gather the weights first, and give them whole (state_dict=...)",
            )


def _row_dtype(memory: Memory, states: Mapping[int, Mapping[str, Tensor]]) -> str:
    """Return the dtype of the rows; floats may have been moved to another since attaching."""
    if memory.spec.row_type.quantised or memory.is_placed:
        return memory.spec.dtype
    names = {
        str(_tensor(state, layer, ROWS).dtype).removeprefix("torch.")
        for layer, state in states.items()
    }
    floats = [name for name in DTYPES if not DTYPES.load(name).quantised]
    if len(names) > 1 or not names <= set(floats):
        raise RuntimeAttachError(
            f"rows of {', '.join(sorted(names))}", f"a bundle has {', '.join(floats)}"
        )
    return names.pop()


def _stored(
    memory: Memory,
    spec: BundleSpec,
    states: Mapping[int, Mapping[str, Tensor]],
    part: str,
    gathered: Callable[[int], Blocks] | None = None,
) -> Callable[[int], Iterator[tuple[int, Array]]]:
    """Return a function that yields a layer's rows or scales in pieces, as a bundle stores them.

    `gathered` gives the pieces of a layer, by its number in the order of the layers, where they are
    distributed over processes.
    """

    def pieces(layer: int) -> Iterator[tuple[int, Array]]:
        rows = cast(MemoryModule, memory.layers[str(layer)]).multi_head_embedding.embedding
        if isinstance(rows, PlacedRows):
            yield from _mapped(rows, part)
            return
        whole = spec.tensor(layer, part)
        if gathered is None:
            held = _tensor(states[layer], layer, part)
            blocks = _cut(held, max(1, _PIECE_BYTES * len(held) // whole.nbytes))
        else:
            blocks = gathered(spec.layers.index(layer))
        for first, piece in blocks:
            bits = piece.view(torch.int16) if piece.dtype == torch.bfloat16 else piece
            yield first, bits.numpy().view(physical_dtype(whole.dtype))

    return pieces


def _cut(held: Tensor, step: int) -> Blocks:
    for first in range(0, len(held), step):
        yield first, held[first : first + step].contiguous().cpu()


def _mapped(rows: PlacedRows, part: str) -> Iterator[tuple[int, Array]]:
    """Yield rows or scales in tiers from their bundle: they are frozen."""
    if rows.origin is None:
        raise RuntimeAttachError("rows that are of no bundle cannot be saved", "attach a bundle")
    bundle, layer = rows.origin
    first = 0
    for whole in bundle.maps(layer, part):
        step = max(1, _PIECE_BYTES * len(whole) // whole.nbytes)
        for begin in range(0, len(whole), step):
            yield first + begin, whole[begin : begin + step]
        first += len(whole)


def _hits(memory: Memory) -> Callable[[int], Iterator[tuple[int, Array]]]:
    """Return a function that gives a layer's hits, mapped, as a bundle stores them."""

    def pieces(layer: int) -> Iterator[tuple[int, Array]]:
        first = 0
        for piece in memory.hits[layer]:
            yield first, piece
            first += len(piece)

    return pieces


def _tensor(state: Mapping[str, Tensor], layer: int, part: str) -> Tensor:
    check_plain(state, HELD[part], layer)
    return state[HELD[part]].detach()
