"""Load a bundle's weights into a live memory, in place: every bit of them, as saving keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from engram_cli.errors import MismatchError, RuntimeAttachError
from engram_cli.formats.bundle import Bundle, bundle_folder, read_bundle
from engram_cli.formats.bundle_files import DESCRIPTION
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime import loading
from engram_cli.runtime.adapters import adapted
from engram_cli.runtime.carried import leave_out_of_broadcasts, memory_of
from engram_cli.runtime.hub import local_checkpoint
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import HELD, MemoryModule
from engram_cli.runtime.place_rows import all_rows
from engram_cli.runtime.saving import base_states, check_plain
from engram_cli.runtime.sharding.trained.placing import owned
from engram_cli.runtime.sharding.trained.rows import sharded_rows
from engram_cli.runtime.tiers.placement import resolve_for
from engram_cli.runtime.weights_inside import fill_from, weights_inside


def load(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str | None = None,
    placement: str | None = None,
    verify: bool = False,
) -> Memory:
    """Give the memory that `model` carries the weights of the bundle in a folder, in place.

    As in `attach`, the folder may be a checkpoint's with the bundle in its `engram`, or a model on
    the Hub. A checkpoint without one may have the memory's tensors among the model's, as earlier
    versions saved them: those are loaded, with nothing to check their hash by.
    Optimisers keep their parameters. With a `placement`, and where rows are not in HBM, rows are
    placed next to the old ones, which are then freed: as `placement` says, else as when they were
    attached. `verify` checks every byte first. Raises MismatchError for a bundle of another layout
    or module, InputError for rows that do not fit, RuntimeAttachError for weights that cannot be
    replaced; with none attached, use `attach`.
    """
    memory = memory_of(model, name)
    _check_loadable(memory)
    checkpoint = local_checkpoint(folder)
    path = bundle_folder(checkpoint, memory.name)
    has_bundle = (path / DESCRIPTION).exists()
    inside = {} if has_bundle else weights_inside(checkpoint, memory.name)
    if inside:
        fill_from(inside, base_states(memory))
    else:
        fill_memory(model, memory, read_bundle(path, verify=verify), placement)
    return memory


def fill_memory(
    model: nn.Module, memory: Memory, bundle: Bundle, placement: str | None = None
) -> None:
    """Give a memory of `model` the weights of a bundle, under its adapters. Raises as `load`."""
    _check_same(memory.spec, bundle)
    sharded = sharded_rows(memory.layers)
    if sharded and placement not in (None, memory.asked):
        raise RuntimeAttachError(
            f"placement='{placement}': the attached rows learn, distributed over processes",
            "leave it out, or detach(model) and attach(model, folder, placement=...)",
        )
    if not sharded and (placement is not None or memory.is_placed):
        _place_again(memory, bundle, placement)
        leave_out_of_broadcasts(model)
    memory.hits = loading.hits(bundle)
    for layer, state in base_states(memory).items():
        with torch.no_grad():
            for part in memory.spec.parts:
                if HELD[part] in state:
                    pieces = loading.table_pieces(bundle, layer, part)
                    if layer in sharded:
                        pieces = owned(pieces, dist.get_rank(), dist.get_world_size())
                    loading.fill(state[HELD[part]], pieces)
            for key, value in bundle.dense[layer].items():
                check_plain(state, key, layer)
                _copy(state[key], torch.from_numpy(np.array(value)))


def _copy(weight: Any, value: Tensor) -> None:
    """Copy a whole tensor into a weight, each process its part where FSDP2 has cut it up."""
    if hasattr(weight, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    weight.copy_(value)


def _place_again(memory: Memory, bundle: Bundle, placement: str | None) -> None:
    wanted = memory.asked if placement is None else placement
    anchors = {
        layer: cast(MemoryModule, memory.layers[str(layer)]).anchor for layer in memory.spec.layers
    }
    homes = {layer: (anchor.dtype, anchor.device) for layer, anchor in anchors.items()}
    placed = resolve_for(bundle, wanted, {i: home[1] for i, home in homes.items()})
    trainable = not bundle.spec.row_type.quantised
    rows = all_rows(bundle, placed, homes, trainable=trainable, sparse=False)
    memory.replace_rows(rows)
    memory.asked, memory.placement = wanted, placed


def _check_same(spec: BundleSpec, bundle: Bundle) -> None:
    both = spec, found = spec, bundle.spec
    for what, mine, other in (
        ("fingerprint", spec.layout.fingerprint, found.layout.fingerprint),
        ("layers", spec.layers, found.layers),
        ("decoder layers", spec.decoder_layers, found.decoder_layers),
        ("row size", spec.dim, found.dim),
        ("module", spec.module, found.module),
        ("hidden size", spec.hidden_size, found.hidden_size),
        ("packing", spec.packed, found.packed),
        # Floats are rounded to those of the memory, anything else is not.
        ("stored rows", *(one.dtype if one.row_type.quantised else "floats" for one in both)),
    ):
        if mine != other:
            raise MismatchError(
                f"the bundle {bundle.folder} has {what} {other}, the attached memory {mine}",
                "detach(model), then attach(model, folder)",
            )


def _check_loadable(memory: Memory) -> None:
    """Raise RuntimeAttachError where copying weights in place would not change the model."""
    for layer in memory.spec.layers:
        module = memory.layers[str(layer)]
        names = adapted(module)
        if names:
            raise RuntimeAttachError(
                f"{', '.join(names)} of layer {layer} has an adapter, which would be added to what "
                "is loaded",
                "model.merge_and_unload() first, or detach(model) and attach(model, folder)",
            )
        state = module.state_dict()
        for key in memory.spec.dense_shapes:
            check_plain(state, key, layer)
