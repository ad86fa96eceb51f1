"""The weights of a memory inside a model's own checkpoint, next to those of the model.

Models that were saved by `save_pretrained` of earlier versions, `Trainer`, `accelerate` or PEFT's
`modules_to_save` have them there. Such files do not say which hash the rows belong to: only shapes
and the offsets of the columns can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engram_cli.errors import ArtifactError, MismatchError
from engram_cli.rows.safetensors import checkpoint_files

_PIECE_ROWS = 2**18
_OFFSETS = "multi_head_embedding.offsets"


def weights_inside(folder: Path, attribute: str) -> dict[str, tuple[Path, str]]:
    """Return where a checkpoint has the tensors of the memory called `attribute`.

    By their names in the memory, such as `layers.1.value_proj.weight`: the file, and the name in
    it. {} where there are none. Raises InputError and ArtifactError for files that are damaged.
    """
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        return {}
    pattern = re.compile(rf"(?:.*\.)?{re.escape(attribute)}\.(layers\.\d+\..*)")
    found: dict[str, tuple[Path, str]] = {}
    for name, file in checkpoint_files(folder).items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        if match[1] in found:
            raise ArtifactError(
                f"{folder} has {match[1]} of {attribute} twice: {found[match[1]][1]} and {name}",
                "save the memory alone, with save_engram, where the model is loaded",
            )
        found[match[1]] = file, name
    return found


def fill_from(
    places: Mapping[str, tuple[Path, str]], states: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """Copy tensors of a checkpoint into those of each layer of a memory, in place.

    All are compared first. Raises MismatchError for one that is missing or of another shape, or of
    rows that are stored in another way, ArtifactError for a damaged file.
    """
    pairs = [
        (f"layers.{layer}.{key}", own)
        for layer, state in states.items()
        for key, own in state.items()
    ]
    for name, own in pairs:
        if name not in places:
            raise MismatchError(
                f"the checkpoint has no {name} of the memory",
                "load a bundle, or attach the one that the memory was trained from",
            )
        _check(name, places[name], own)
    with torch.no_grad():
        for name, own in pairs:
            _copy(places[name], own)


def _check(name: str, place: tuple[Path, str], own: Tensor) -> None:
    """Raise MismatchError unless a tensor fits; the offsets of the columns must be equal."""
    path, stored = place
    try:
        with safe_open(path, framework="pt") as file:
            part = file.get_slice(stored)
            shape = tuple(part.get_shape())
            one = part[:1].dtype if shape else None
            equal = _OFFSETS not in name or torch.equal(file.get_tensor(stored), own.cpu())
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"cannot read {path}: {error}", "take the checkpoint again") from None
    is_exact = one is not None and (one == own.dtype or own.is_floating_point())
    if shape != tuple(own.shape) or not is_exact or not equal:
        what = f"{one} {shape}, not {own.dtype} {tuple(own.shape)}" if equal else "other values"
        raise MismatchError(
            f"{stored} in {path.name} has {what}",
            "the memory there has another table: attach the bundle that it was trained from",
        )


def _copy(place: tuple[Path, str], own: Tensor) -> None:
    path, stored = place
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(stored)
        for first in range(0, len(own), _PIECE_ROWS):
            own[first : first + _PIECE_ROWS].copy_(part[first : first + _PIECE_ROWS])
