"""A model's checkpoint: its token embeddings, and Engram layers that it has of its own.

Embeddings are found by name in safetensors files and read by rows; only the headers and the one
tensor are read, no configuration, no torch, no pickle. Names, headers and configs are untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.rows.safetensors import checkpoint_files, raw_header

Side = Literal["input", "output"]
# What models call them; the first that is there is taken.
_INPUT = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.word_embeddings.weight",
    "gpt_neox.embed_in.weight",
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed.weight",
)
_OUTPUT = (
    "lm_head.weight",
    "model.lm_head.weight",
    "language_model.lm_head.weight",
    "embed_out.weight",
    "output.weight",
    "head.weight",
)
_TYPES: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_LARGEST = 2**16  # hidden size
OWN_LAYERS = ("engram_layer_ids", "ple_layer_ids")  # keys of configs with Engram layers
# A part of one decoder layer, as published models name it.
_OWN = re.compile(r"(?:^|\.)\d+\.(?:\w+\.)*(?:engram|ple)(?:\.|$)")
# A memory that a model carried when it was saved with its weights.
_SAVED = re.compile(r"(?:^|\.)engram(?:_\w+)?\.layers\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTensor:
    """A matrix [tokens, hidden] of F32, F16 or BF16 that begins at byte `begin` of `path`."""

    path: Path
    name: str
    code: str
    tokens: int
    hidden: int
    begin: int

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return the rows from `begin` to `end` exactly, float32[end - begin, hidden]."""
        stored = self.map()[begin:end]
        if self.code == "BF16":
            return cast("NDArray[np.float32]", (stored.astype(np.uint32) << 16).view(np.float32))
        return stored.astype(np.float32)

    def map(self) -> NDArray[Any]:
        """Map the stored values [tokens, hidden]; BF16 as uint16."""
        shape = (self.tokens, self.hidden)
        return np.memmap(
            self.path, dtype=_TYPES[self.code], mode="r", offset=self.begin, shape=shape
        )


def find_embeddings(folder: Path, side: Side, name: str | None = None) -> EmbeddingTensor:
    """Find the input or output embeddings of a checkpoint's folder, or the tensor called `name`.

    Where a model has no output embeddings they are tied to the input's, which are taken. Raises
    InputError when there is none, ArtifactError for a damaged file.
    """
    if name is not None:
        wanted: tuple[str, ...] = (name,)
    else:
        wanted = _OUTPUT + _INPUT if side == "output" else _INPUT
    places = checkpoint_files(folder)
    for candidate in wanted:
        if candidate in places:
            return _tensor(places[candidate], candidate)
    some = sorted(n for n in places if "emb" in n or "head" in n or "wte" in n)[:8]
    what = "embeddings under a known name" if name is None else f"tensor {name}"
    raise InputError(
        f"{folder} holds no {what}",
        f"name it with --embedding-tensor; there are {', '.join(some) or 'none that look like it'}",
    )


def _tensor(path: Path, name: str) -> EmbeddingTensor:
    header, data = raw_header(path)
    entry = header.get(name)
    if not isinstance(entry, dict):
        raise ArtifactError(f"{path} has no tensor {name}", "take the checkpoint again")
    code, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(code, str) or code not in _TYPES:
        raise InputError(f"{name} in {path} is {code!r}", "embeddings must be F32, F16 or BF16")
    pairs = [pair for pair in (shape, offsets) if isinstance(pair, list) and len(pair) == 2]
    numbers = [value if type(value) is int else -1 for pair in pairs for value in pair]
    good = len(numbers) == 4 and all(n >= 0 for n in numbers)
    if not good or not (0 < numbers[0] < 2**31 and 0 < numbers[1] <= _LARGEST):
        raise ArtifactError(f"{name} in {path} has shape {shape!r}", "give a matrix [V, hidden]")
    tokens, hidden, begin, end = numbers
    size = tokens * hidden * np.dtype(_TYPES[code]).itemsize
    if end - begin != size or data + end > path.stat().st_size:
        raise ArtifactError(f"{name} in {path} does not fit in the file", "take it again")
    return EmbeddingTensor(
        path=path, name=name, code=str(code), tokens=tokens, hidden=hidden, begin=data + begin
    )


def named_in_config(config: Any) -> str | None:
    """Return what a config says of Engram layers, also in a config inside it, or None."""
    if not isinstance(config, Mapping):
        return None
    inner = (value for key, value in config.items() if str(key).endswith("config"))
    for each in (config, *(value for value in inner if isinstance(value, Mapping))):
        for name in OWN_LAYERS:
            if isinstance(each.get(name), (list, tuple)) and each[name]:
                return f"{name} {', '.join(map(str, each[name]))}"
    return None


def named_in_layers(names: Iterable[str]) -> str | None:
    """Return the first name of a tensor or module in an Engram layer."""
    return next((name for name in names if _OWN.search(name)), None)


def named_as_saved(names: Iterable[str]) -> str | None:
    """Return the first name of a tensor of a memory that was attached when its model was saved."""
    return next((name for name in names if _SAVED.search(name)), None)
