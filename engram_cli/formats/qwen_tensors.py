"""The tensors of a Qwen4-Exp checkpoint: rows in shards, their scales, and rows of nvfp4.

nvfp4 has two scales: e4m3 for each 16 values of a row, and a float32 for each tensor of rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import InputError
from engram_cli.formats.model_folder import CheckpointRows, FoundTensor, ModelFolder
from engram_cli.rows.gather import FileArray, FileRows, HeldArray

BLOCK_SCALE, TENSOR_SCALE = "weight_scale", "weight_scale_2"
NAME = re.compile(
    r"(?:model\.)?(?:language_model\.)?layers\.(\d{1,5})\.ple\.(?:ple_embedding\."
    r"(?:ngram_embedding\.(?:shard_(\d{1,5})\.(weight(?:_scale(?:_2)?)?)"
    r"|(weight(?:_scale(?:_2)?)?))"
    r"|(layer_multipliers|ngram_heads_vocab_sizes|ngram_heads_offsets))"
    r"|((?:key_proj|value_proj|norm_key|norm_query|norm_conv|conv1d)\.weight))"
)
MODULE = ("key_proj", "value_proj", "norm_key", "norm_query", "norm_conv", "conv1d")


@dataclass(slots=True)
class Layer:
    """The tensors of a layer, by name; those of shards by what they are and by number."""

    shards: dict[str, dict[int, str]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def of(self, what: str) -> list[str]:
        """The names of the tensors of a kind, in order: of all shards, else of the whole table."""
        own = self.shards.get(what, {})
        if own:
            return [own[index] for index in sorted(own)]
        return [self.others[what]] if what in self.others else []

    def rows(self) -> list[str]:
        """The names of the tensors of rows, in order."""
        return self.of("weight")

    def names(self) -> tuple[str, ...]:
        """The names of all tensors, rows first."""
        kinds = ["weight", *(kind for kind in self.shards if kind != "weight")]
        sharded = [name for kind in kinds for name in self.of(kind)]
        return tuple(dict.fromkeys([*sharded, *self.others.values()]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvfp4Rows(CheckpointRows):
    """Rows of nvfp4. `tensor_scales`: by layer, the first row of each tensor, and its scale."""

    tensor_scales: Mapping[int, tuple[NDArray[np.int64], NDArray[np.float32]]]

    def vectors(self, layer: int | None, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the rows at `ids` as float32[n, dim]. Raises as `stored`."""
        values = FileRows.vectors(self, layer, ids)
        return values * self._scales(layer, np.asarray(ids))[:, None]

    def read(self, layer: int | None, first: int, values: NDArray[np.float32]) -> None:
        """Read the rows from `first` on into `values` float32[n, dim]. Raises as `lines`."""
        FileRows.read(self, layer, first, values)
        values *= self._scales(layer, np.arange(first, first + len(values)))[:, None]

    def _scales(self, layer: int | None, ids: NDArray[Any]) -> NDArray[np.float32]:
        firsts, scales = self.tensor_scales[self.layout.layer(layer).layer]
        found: NDArray[np.float32] = scales[np.searchsorted(firsts, ids, side="right") - 1]
        return found


def by_layer(folder: ModelFolder) -> dict[int, Layer]:
    """Return the tensors of each decoder layer, counted from 0."""
    found: dict[int, Layer] = {}
    for name in folder.tensors:
        match = NAME.fullmatch(name)
        assert match is not None
        layer, shard, kind, weight, constant, module = match.groups()
        own = found.setdefault(int(layer), Layer())
        if shard is not None:
            own.shards.setdefault(kind, {})[int(shard)] = name
        else:
            own.others[weight or constant or module] = name
    return found


def dtype_of(folder: ModelFolder, own: Layer) -> str:
    """Return the dtype of stored rows. Raises InputError for one that is not read."""
    found = {folder.tensors[name].dtype for name in own.rows()}
    if found == {"float8_e4m3fn"}:
        return "fp8"
    if found == {"uint8"} and own.of(BLOCK_SCALE) and own.of(TENSOR_SCALE):
        return "nvfp4"
    if len(found) == 1 and found <= {"bfloat16", "float16", "float32"}:
        return found.pop()
    raise InputError(
        f"rows of {', '.join(sorted(found))} are not read",
        "bfloat16, float8_e4m3fn with a scale, or uint8 with the two scales of nvfp4",
    )


def scale_array(folder: ModelFolder, own: Layer, dtype: str) -> FileArray | None:
    """Return the scales of rows: e4m3 [rows, n] for nvfp4, the one of a layer float32[1] for fp8.

    None where there is none. Raises InputError for one that is not read.
    """
    names = own.of(BLOCK_SCALE)
    if dtype == "nvfp4":
        return folder.array(names)
    return HeldArray(_number(folder.tensors[names[0]])) if dtype == "fp8" and names else None


def tensor_scales(folder: ModelFolder, own: Layer) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the first row of each tensor of nvfp4 rows, and the float32 that scales its values.

    Raises InputError where there is not one for each tensor, or one for all.
    """
    heights = [folder.tensors[name].shape[0] for name in own.rows()]
    scales = [_number(folder.tensors[name])[0] for name in own.of(TENSOR_SCALE)]
    if len(scales) not in (1, len(heights)):
        raise InputError(
            f"{len(scales)} scales of {len(heights)} tensors of rows", "take the checkpoint again"
        )
    firsts = np.cumsum([0, *heights[:-1]], dtype=np.int64)
    return firsts, np.resize(np.array(scales, dtype=np.float32), len(heights))


def _number(tensor: FoundTensor) -> NDArray[np.float32]:
    """Return a tensor of one number as float32[1]. Raises InputError for another."""
    if tensor.shape not in ((), (1,)) or tensor.dtype not in ("bfloat16", "float32"):
        raise InputError(
            f"{tensor.place.spec.name} is {tensor.dtype} {tensor.shape}", "one scale is read"
        )
    stored = tensor.values().reshape(-1)
    wide = stored.astype(np.uint32) << 16 if tensor.dtype == "bfloat16" else stored
    return wide.view(np.float32)
